"""The check of claims: its statistics, its verdicts by each rule, its lines, what it refuses."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import integrate, special

from iclbook import claims
from iclbook.claims import Checked, Claim, ClaimError, Part, check, control, interval, load

ROW: dict[str, Any] = {
    "id": "A-F1",
    "paper": "A",
    "where": "Figure 1",
    "says": "Something.",
    "chapter": "linear/trial",
    "anchor": "trial",
    "regime": "At d = 5.",
    "control": {"says": "Something else.", "part": "ratio"},
    "seeds": 4,
    "parts": [
        {
            "name": "ratio",
            "decided": "By the mean.",
            "rule": "mean",
            "low": 0.9,
            "high": 1.1,
            "basis": "chosen",
        }
    ],
}


def write_ledger(path: Path, rows: object) -> Path:
    path.write_text(yaml.safe_dump(rows), encoding="utf-8")
    return path


def trial(part: dict[str, Any] | None = None, **changes: object) -> dict[str, Any]:
    """The trial row with changes; None drops a key."""
    parts = [
        {k: v for k, v in (ROW["parts"][0] | (part or {})).items() if v is not None},
    ]
    return {k: v for k, v in (ROW | {"parts": parts} | changes).items() if v is not None}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a ledger of the trial row, with changes, the one that `check` reads."""

    def write(part: dict[str, Any] | None = None, **changes: object) -> None:
        path = write_ledger(tmp_path / "claims.yml", [trial(part, **changes)])
        rows = {claim.id: claim for claim in load(path)}
        monkeypatch.setattr(claims, "_rows", lambda: rows)

    return write


def part_of(rule: str, low: float | None = None, high: float | None = None) -> Part:
    return Part("p", "d", rule, "chosen", low, high, seeds=1 if rule == "exact" else 2)


def decided(part: Part, measured: object) -> Checked:
    return claims.decide(Claim("A-F1", "A", "w", "s", "c", parts=(part,)), part, measured)


def t_quantile(degrees: int) -> float:
    """97.5 % point of Student's t by integrating its density, without a table of it."""

    def density(t: float) -> float:
        scale = special.gamma((degrees + 1) / 2) / special.gamma(degrees / 2)
        return scale / math.sqrt(degrees * math.pi) * (1 + t * t / degrees) ** (-(degrees + 1) / 2)

    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        mass = integrate.quad(density, 0, middle)[0]
        low, high = (middle, high) if mass < 0.475 else (low, middle)
    return low


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_interval_is_student_s(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    mean, low, high = interval(values)
    half = t_quantile(n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(mean)


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_covers_the_mean_19_times_out_of_20(n: int) -> None:
    draws = np.random.default_rng(0).normal(size=(4000, n))
    covered = [low <= 0 <= high for _, low, high in map(interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_an_interval_needs_values(values: object) -> None:
    with pytest.raises(ValueError, match="interval needs"):
        interval(values)


def test_pooled_z_scores_are_standard_normal_and_show_a_shared_bias() -> None:
    z = np.random.default_rng(1).normal(size=(20000, 8))
    pooled = np.array([claims.pooled_z(row) for row in z])
    assert pooled.std() == pytest.approx(1.0, abs=0.02)
    # Each seed off by one standard error looks harmless; all of them together do not.
    assert claims.pooled_z(np.ones(8)) == pytest.approx(math.sqrt(8))
    part = part_of("exact", -2.5, 2.5)
    assert decided(part, claims.pooled_z(np.ones(8))).verdict == "does not hold"


# Verdicts


def test_the_mean_holds_only_with_its_whole_interval() -> None:
    part = part_of("mean", 0.9, 1.1)
    spread = np.array([-1.0, 1.0, -1.0, 1.0])
    half = interval(spread)[2]  # of the mean 0
    for scale, centre, verdict in (
        (0.05 / half, 1.0, "holds"),
        (0.05 / half, 1.06, "inconclusive"),
        (0.05 / half, 1.14, "inconclusive"),
        (0.05 / half, 1.16, "does not hold"),
        (0.05 / half, 0.84, "does not hold"),
        (0.2 / half, 1.0, "inconclusive"),
    ):
        assert decided(part, centre + scale * spread).verdict == verdict, (scale, centre)


def test_every_value_must_keep_the_bounds() -> None:
    part = part_of("every", -1e-6, 1e-4)
    lower_once = [-1e-5] + [1e-5] * 7  # the mean is inside, one search found a lower minimum
    assert decided(part_of("mean", -1e-6, 1e-4), [1e-5] * 8).verdict == "holds"
    assert decided(part, lower_once).verdict == "does not hold"
    assert decided(part, lower_once).measured == -1e-5
    assert decided(part, [1e-5] * 8).verdict == "holds"


def test_an_exact_number_is_compared_as_it_is() -> None:
    assert decided(part_of("exact", high=1.0), 1.0).verdict == "holds"
    assert decided(part_of("exact", high=1.0), np.nextafter(1.0, 2.0)).verdict == "does not hold"
    assert decided(part_of("exact", low=1.0), np.nextafter(1.0, 0.0)).verdict == "does not hold"


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(at least k of n)."""
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


@pytest.mark.parametrize(("k", "n"), [(3, 8), (0, 10), (10, 10), (17, 40)])
def test_a_share_has_its_exact_binomial_interval(k: int, n: int) -> None:
    low, high = decided(part_of("share", low=0.5), np.arange(n) < k).interval or (0, 0)
    # The ends are where k or more, or k or fewer, would be seen 2.5 % of the time.
    assert k == 0 or binomial_tail(k, n, low) == pytest.approx(0.025, abs=1e-6)
    assert k == n or 1 - binomial_tail(k + 1, n, high) == pytest.approx(0.025, abs=1e-6)
    assert (low == 0) == (k == 0)
    assert (high == 1) == (k == n)


def test_a_share_straddles_holds_or_fails() -> None:
    part = part_of("share", low=0.5)
    assert decided(part, np.ones(10, bool)).verdict == "holds"
    assert decided(part, np.zeros(10, bool)).verdict == "does not hold"
    assert decided(part, np.arange(10) < 6).verdict == "inconclusive"


@pytest.mark.parametrize("centre", [1.06, 1.14, 0.95])
def test_the_number_of_runs_that_would_tell_does(centre: float) -> None:
    part = part_of("mean", 0.9, 1.1)
    few = centre + 0.08 * np.array([-1.0, 1.0, -1.0, 1.0])
    found = decided(part, few)
    assert found.verdict == "inconclusive"
    assert found.runs is not None
    # The same values over and over again: many more than asked for tell, half as many do not.
    assert decided(part, np.resize(few, 2 * found.runs)).verdict != "inconclusive"


def test_raw_values_decide_and_only_the_line_rounds(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger({"rule": "exact", "low": None, "high": 0.1}, seeds=None)
    with pytest.raises(ClaimError, match=r"0\.1000, exact"):
        check("A-F1", 0.1 + 1e-9)
    assert capsys.readouterr().out == ""


# Lines and records


def line_of(measured: object, capsys: pytest.CaptureFixture[str]) -> str:
    check("A-F1", measured)
    return capsys.readouterr().out.rstrip("\n")


def test_a_line_says_row_part_verdict_numbers_and_bounds(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger()
    line = line_of([1.0, 1.02, 0.98, 1.012], capsys)
    assert re.fullmatch(
        r"A-F1 \| ratio \| holds \| 1\.003 \[0\.975, 1\.031\], 4 seeds "
        r"\| claimed in \[0\.9, 1\.1\] \(chosen\)",
        line,
    ), line


def test_a_line_carries_the_digits_of_its_interval(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger({"low": 0.0, "high": 5000.0})
    assert "| 1003 [975, 1031], 4 seeds |" in line_of([1000, 1020, 980, 1012], capsys)
    ledger({"low": -1.0, "high": 1.0})
    assert "| 0.0000 [0.0000, 0.0000], 4 seeds |" in line_of([-1e-15] * 4, capsys)


def test_residuals_far_inside_their_bounds_print_as_zero(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger({"rule": "every", "low": None, "high": 1e-4})
    assert "| 0 in 4 |" in line_of([1e-8, 2e-9, 0.0, 9e-8], capsys)
    assert "| 0 to 2.000e-05 in 4 |" in line_of([1e-8, 2e-5, 0.0, 0.0], capsys)


def test_an_inconclusive_part_says_how_many_runs_would_tell(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger({"expect": "inconclusive", "reason": "Few seeds."})
    line = line_of([1.0, 1.3, 0.8, 1.1], capsys)
    assert re.search(r"\| inconclusive \(about \d+ runs would tell\) \|", line), line


def test_a_share_prints_k_of_n(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger({"rule": "share", "low": 0.3, "high": None})
    assert "| 8 of 8 [0.63, 1.00] |" in line_of(np.ones(8, bool), capsys)


# Expectations and controls


def test_a_part_must_go_as_the_ledger_expects(ledger: Callable[..., None]) -> None:
    outside, inside, between = [2.0, 2.1, 2.0, 2.1], [1.0, 1.01, 1.0, 1.01], [1, 1.3, 0.8, 1.1]
    ledger()
    check("A-F1", inside)
    for wrong in (outside, between):
        with pytest.raises(ClaimError, match="expects 'holds'"):
            check("A-F1", wrong)
    ledger({"expect": "does not hold", "reason": "Because."})
    check("A-F1", outside)
    for wrong in (inside, between):
        with pytest.raises(ClaimError, match="expects 'does not hold'"):
            check("A-F1", wrong)
    ledger({"expect": "inconclusive", "reason": "Because."})
    check("A-F1", between)
    for wrong in (inside, outside):
        with pytest.raises(ClaimError, match="expects 'inconclusive'"):
            check("A-F1", wrong)


def test_a_control_must_be_rejected(
    ledger: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger()
    control("A-F1", [2.0, 2.1, 2.0, 2.1], part="ratio")
    assert "| wrong statement rejected |" in capsys.readouterr().out
    for accepted in ([1.0, 1.01, 1.0, 1.01], [1, 1.3, 0.8, 1.1]):
        with pytest.raises(ClaimError, match="not rejected"):
            control("A-F1", accepted)


def test_a_control_belongs_to_the_part_that_the_row_names(ledger: Callable[..., None]) -> None:
    second = ROW["parts"][0] | {"name": "other"}
    ledger(parts=[ROW["parts"][0], second])
    with pytest.raises(ValueError, match="not the part that the row's control names"):
        control("A-F1", [2.0] * 4, part="other")


def test_a_row_with_several_parts_wants_a_name(ledger: Callable[..., None]) -> None:
    ledger(parts=[ROW["parts"][0], ROW["parts"][0] | {"name": "other"}])
    with pytest.raises(ValueError, match="several parts, name one: ratio, other"):
        check("A-F1", [1.0] * 4)
    with pytest.raises(ValueError, match="no part 'rest'"):
        check("A-F1", [1.0] * 4, part="rest")


@pytest.mark.parametrize(
    ("part", "measured", "said"),
    [
        ({}, 1.0, "one value per seed, not shape"),
        ({}, [[1.0] * 4], "one value per seed, not shape"),
        ({}, [1.0] * 3, "needs 4 values, not 3"),
        ({}, [1.0, math.nan, 1.0, 1.0], "not finite"),
        ({"rule": "every"}, [1.0] * 3, "needs 4 values"),
        ({"rule": "exact"}, [1.0], "takes one number"),
        ({"rule": "exact"}, math.inf, "not finite"),
        ({"rule": "share", "low": 0.5, "high": None}, [1.0] * 4, "true or false per run"),
    ],
)
def test_bad_measurements_are_refused(
    ledger: Callable[..., None], part: dict[str, Any], measured: object, said: str
) -> None:
    ledger(part)
    with pytest.raises(ValueError, match=said):
        check("A-F1", measured)


def test_unknown_rows_are_refused(ledger: Callable[..., None]) -> None:
    ledger()
    with pytest.raises(ValueError, match="no row 'A-F9'"):
        check("A-F9", 1.0)
    ledger(chapter="not yet", anchor=None, regime=None, control=None, seeds=None, parts=None)
    with pytest.raises(ValueError, match="no parts"):
        check("A-F1", 1.0)


# The shape of the ledger


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ({}, {"paper": "C"}, "row A-F1"),
        ({}, {"says": " padded"}, "row A-F1"),
        ({}, {"where": ""}, "row A-F1"),
        ({}, {"where": None}, "where"),
        ({}, {"regime": None}, "regime"),
        ({}, {"control": None}, "control"),
        ({}, {"proof": "prop-x"}, "row A-F1"),
        ({}, {"colour": "red"}, "colour"),
        ({}, {"parts": []}, "row A-F1"),
        ({}, {"chapter": "not yet"}, "row A-F1"),
        ({}, {"id": "a-f1"}, "row a-f1"),
        ({"rule": "median"}, {}, "median"),
        ({"basis": None}, {}, "basis"),
        ({"basis": "derived"}, {}, "by"),
        ({"by": "prop-x"}, {}, "row A-F1"),
        ({"low": None, "high": None}, {}, "row A-F1"),
        ({"low": "1e-3"}, {}, "1e-3"),
        ({"expect": "does not hold"}, {}, "reason"),
        ({"reason": "Because."}, {}, "expect"),
        ({"expect": "holds", "reason": "x"}, {}, "holds"),
        ({"seeds": 1}, {}, "minimum"),
        ({"rule": "share", "low": 2.0, "high": None}, {}, "row A-F1"),
        ({"rule": "exact", "seeds": 3}, {}, "row A-F1"),
        ({"about": "paper"}, {"paper": "beyond", "id": "X-a", "regime": None}, "row X-a"),
    ],
)
def test_a_bad_ledger_is_refused_by_name(
    tmp_path: Path, part: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        load(write_ledger(tmp_path / "claims.yml", [trial(part, **changes)]))


@pytest.mark.parametrize("rows", [{}, "text", [3], None])
def test_a_ledger_that_is_no_list_of_rows_is_refused(tmp_path: Path, rows: object) -> None:
    with pytest.raises(ValueError, match=r"claims\.yml"):
        load(write_ledger(tmp_path / "claims.yml", rows))


def test_parts_inherit_seeds_and_what_they_are_about(tmp_path: Path) -> None:
    parts = [
        ROW["parts"][0],
        ROW["parts"][0] | {"name": "few", "seeds": 2, "about": "beyond"},
        ROW["parts"][0] | {"name": "one", "rule": "exact"},
    ]
    [claim] = load(write_ledger(tmp_path / "claims.yml", [trial(parts=parts)]))
    assert [(p.seeds, p.about) for p in claim.parts] == [(4, "paper"), (2, "beyond"), (1, "paper")]


def test_the_record_travels_beside_the_line(
    ledger: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger()
    shown: list[tuple[dict, dict]] = []
    monkeypatch.setattr(claims.notebook, "show", lambda *given: shown.append(given))
    values = [1.0, 1.02, 0.98, 1.0 + 1 / 3]
    ledger({"low": 0.5, "high": 5.0})
    check("A-F1", values)
    [(bundle, metadata)] = shown
    assert bundle.keys() == {"text/plain"}
    record = json.loads(json.dumps(metadata["iclbook"]))
    mean, low, high = interval(values)
    assert record["measured"] == mean  # raw, where the line has three digits
    assert record["interval"] == [low, high]
    assert (record["claim"], record["part"], record["seeds"]) == ("A-F1", "ratio", 4)
    assert (record["control"], record["verdict"], record["runs"]) == (False, "holds", None)
