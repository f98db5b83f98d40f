"""The ledger and its check: the statistics, the lines, refusals, and ledger against chapters."""

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
from iclbook.claims import Checked, Claim, ClaimError, Part, check, interval, load, parse_line

ROOT = Path(__file__).parents[1]
REFERENCES = ROOT / "tests/reference"

# Rows that no chapter shows yet. It may only fall: lower it with every chapter.
NOT_YET = 5

# What the papers hold, by the ids that the book gave them
FIGURES_AND_TABLES = (
    "A-F1 A-T1 B-F1 B-F2A B-F2B B-F2C B-F2D B-F3a B-F3b B-F4A B-F4B B-F5A B-F5B B-F6 B-F7"
)
THEOREMS = "A-gap A-gdbeta A-ltbopt A-gdmin A-nearbayes A-flow B-T3.3 B-T3.4 B-T3.7 B-P4.1 B-mlp"

ROW: dict[str, Any] = {
    "id": "A-F1",
    "paper": "A",
    "where": "Figure 1",
    "says": "Something.",
    "chapter": "linear/trial",
    "anchor": "trial",
    "seeds": 4,
    "parts": [{"name": "ratio", "decided": "By the mean.", "low": 0.9, "high": 1.1}],
}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a ledger of one row, the trial row with changes, and make it the one that is read."""

    def write(*, part: dict[str, Any] | None = None, **changes: object) -> Path:
        parts = [ROW["parts"][0] | (part or {})]
        row = {k: v for k, v in (ROW | {"parts": parts} | changes).items() if v is not None}
        path = tmp_path / "claims.yml"
        path.write_text(yaml.safe_dump([row]))
        monkeypatch.setattr(claims.load, "__defaults__", (path,))
        return path

    return write


def t_quantile(degrees: int) -> float:
    """97.5 % point of Student's t by integrating its density, without a table of it."""

    def density(t: float) -> float:
        constant = special.gamma((degrees + 1) / 2) / special.gamma(degrees / 2)
        return (
            constant / math.sqrt(degrees * math.pi) * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
        )

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        if integrate.quad(density, 0, middle, limit=200)[0] < 0.475:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("n", [2, 5, 8, 30])
def test_the_interval_is_student_s(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    mean, low, high = interval(values)
    squares = sum((v - sum(values) / n) ** 2 for v in values)
    half = t_quantile(n - 1) * math.sqrt(squares / (n - 1) / n)
    assert mean == pytest.approx(sum(values) / n)
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-6)


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_covers_the_mean_19_times_out_of_20(n: int) -> None:
    rng = np.random.default_rng(0)
    repeats = 4000
    found = [interval(rng.normal(1.7, 0.3, n)) for _ in range(repeats)]
    covered = sum(low <= 1.7 <= high for _, low, high in found)
    # binomial: 5 standard deviations
    assert abs(covered - 0.95 * repeats) < 5 * math.sqrt(repeats * 0.95 * 0.05)


@pytest.mark.parametrize("values", [[1.0], 1.0, [[1.0, 2.0]], [1.0, math.nan], []])
def test_an_interval_needs_values(values: object) -> None:
    with pytest.raises(ValueError, match="interval"):
        interval(values)


def test_a_claim_that_holds_prints_one_line(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger()
    values = [0.98, 1.0, 1.0, 1.02]
    check("A-F1", values)
    half = 3.182446 * math.sqrt(0.0008 / 3 / 4)  # t of three degrees, from a printed table
    assert capsys.readouterr().out == (
        f"A-F1 | ratio | holds | measured 1.000 [{1 - half:.4f}, {1 + half:.3f}], 4 seeds"
        " | claimed in [0.9, 1.1]\n"
    )


def test_the_whole_interval_must_be_within_the_bounds(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger()
    spread = [0.8, 1.0, 1.0, 1.2]  # its mean is 1, its interval reaches from .74 to 1.26
    with pytest.raises(ClaimError, match="does not hold"):
        check("A-F1", spread)
    assert issubclass(ClaimError, AssertionError)
    assert capsys.readouterr().out == ""


def test_exact_claims_take_one_number(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger(seeds=1)
    check("A-F1", np.float64(1.1))
    assert capsys.readouterr().out == (
        "A-F1 | ratio | holds | measured 1.100, exact | claimed in [0.9, 1.1]\n"
    )
    with pytest.raises(ClaimError):
        check("A-F1", 1.1000001)
    with pytest.raises(ValueError, match="one number"):
        check("A-F1", [1.0, 1.0, 1.0, 1.0])


def test_rounding_noise_is_printed_as_zero(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger(seeds=1, part={"low": 0.0, "high": 1e-10})
    check("A-F1", 3.7e-15)
    assert "measured 0, exact | claimed in [0, 1e-10]" in capsys.readouterr().out


def test_a_part_may_be_exact_in_a_row_that_is_random(ledger: Callable[..., Path]) -> None:
    ledger(part={"seeds": 1})
    check("A-F1", 1.0)


def test_a_part_that_is_known_to_fail_must_fail(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger(seeds=1, part={"fails": "The noise is too small."})
    check("A-F1", 2.0)
    assert "does not hold" in capsys.readouterr().out
    with pytest.raises(ClaimError, match="not as the ledger says"):
        check("A-F1", 1.0)


def test_a_row_with_several_parts_wants_a_name(
    ledger: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        {"name": "first", "decided": "By sight.", "low": 0},
        {"name": "second", "decided": "By sight.", "high": 0},
    ]
    ledger(seeds=1, parts=parts)
    with pytest.raises(ValueError, match="several parts"):
        check("A-F1", 1.0)
    check("A-F1", 1.0, part="first")
    check("A-F1", -1.0, part="second")
    ends = [line.split(" | ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["claimed at least 0", "claimed at most 0"]


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (1.0, "one number per seed"),
        ([1.0, 1.0, 1.0], "needs 4 seeds, not 3"),
        (np.ones((4, 1)), "one number per seed"),
        ([1.0, 1.0, 1.0, math.nan], "not finite"),
        ([1.0, 1.0, 1.0, math.inf], "not finite"),
    ],
)
def test_bad_measurements_are_refused(
    ledger: Callable[..., Path], measured: object, message: str
) -> None:
    ledger()
    with pytest.raises(ValueError, match=message):
        check("A-F1", measured)


def test_unknown_rows_and_parts_are_refused(ledger: Callable[..., Path]) -> None:
    ledger()
    with pytest.raises(ValueError, match="no row 'A-F9'"):
        check("A-F9", [1.0] * 4)
    with pytest.raises(ValueError, match="no part 'other', but ratio"):
        check("A-F1", [1.0] * 4, part="other")
    ledger(chapter="not yet", anchor=None, parts=None)
    with pytest.raises(ValueError, match="no parts"):
        check("A-F1", [1.0] * 4)


@pytest.mark.parametrize("value", [0.25, -3.0, 12345678.0, 1.5e-7, 0.0])
@pytest.mark.parametrize("bounds", [{"low": -1e9}, {"high": 2e12}, {"low": -4.5e8, "high": 2e8}])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_printed_line_can_be_read_back(
    ledger: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    value: float,
    bounds: dict[str, float],
    seeds: int,
) -> None:
    name = "gap over ‖β*‖², d/M (long prompts): a, b"
    parts = [{"name": name, "decided": "By sight.", **bounds}]
    ledger(seeds=seeds, parts=parts)
    check("A-F1", value if seeds == 1 else [value, value * 1.01, value * 0.99], part=name)
    checked = parse_line(capsys.readouterr().out)
    assert checked is not None
    assert (checked.claim, checked.part, checked.holds) == ("A-F1", name, True)
    assert checked.measured == pytest.approx(value, rel=1e-3)
    assert (checked.low, checked.high) == (
        bounds.get("low", -math.inf),
        bounds.get("high", math.inf),
    )
    assert checked.seeds == seeds
    if seeds == 1:
        assert checked.interval is None
    else:
        low, high = checked.interval
        assert low <= checked.measured <= high


@pytest.mark.parametrize(
    "line",
    ["", "A-F1", "risk | 0.25", "A-F1 | a | perhaps | measured 1, exact | claimed at least 0"],
)
def test_other_lines_are_not_taken_for_checks(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "no id"),
        ({"id": "figure 1"}, "an id is like"),
        ({"says": None}, "row A-F1: lacks says"),
        ({"says": " "}, "says is text"),
        ({"notes": "x"}, "row A-F1: has no use for notes"),
        ({"paper": "C"}, "paper is one of"),
        ({"seeds": 0}, "seeds is a whole number"),
        ({"seeds": True}, "seeds is a whole number"),
        ({"seeds": 2.0}, "seeds is a whole number"),
        ({"parts": []}, "one part at least"),
        ({"parts": ["x"]}, "a part has name"),
        ({"parts": None}, "lacks parts"),
        ({"anchor": None}, "lacks anchor"),
        ({"chapter": "not yet"}, "has no use for anchor, parts"),
        ({"parts": ROW["parts"] * 2}, "two parts have the same name"),
        ({"part": {"name": "a | b"}}, "has no |"),
        ({"part": {"low": 2.0}}, "low 2 is above high 1.1"),
        ({"part": {"low": "1e-3"}}, "low is a finite number"),
        ({"part": {"low": True}}, "low is a finite number"),
        ({"part": {"high": math.inf}}, "high is a finite number"),
        ({"part": {"fails": ""}}, "fails is text"),
        ({"part": {"tolerance": 1}}, "has no use for tolerance"),
        ({"part": {"seeds": -1}}, "seeds is a whole number"),
        ({"parts": [{"name": "a", "decided": "b"}]}, "needs low, high or both"),
        ({"parts": [{"name": "a", "low": 1}]}, "lacks decided"),
    ],
)
def test_a_bad_ledger_is_refused_by_name(
    ledger: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    path = ledger(**changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(path)


def test_a_ledger_with_two_rows_of_one_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump([ROW, ROW]))
    with pytest.raises(ValueError, match="more than one row A-F1"):
        load(path)
    path.write_text("rows: none")
    with pytest.raises(ValueError, match="expected a list"):
        load(path)


def test_verdicts_follow_from_the_parts() -> None:
    def claim(paper: str) -> Claim:
        parts = tuple(Part(name, "d", 0, 1, 1) for name in ("a", "b"))
        return Claim("A-F1", paper, "w", "s", "linear/trial", "anchor", parts)

    def went(**holds: bool) -> list[Checked]:
        return [Checked("A-F1", p, h, 1, None, 1, 0, 1, "1") for p, h in holds.items()]

    assert claims.verdict(claim("A"), went(a=True, b=True)) == "holds"
    assert claims.verdict(claim("beyond"), went(a=True, b=True)) == "proved here"
    assert claims.verdict(claim("beyond"), went(a=True, b=False)) == "holds in part"
    assert claims.verdict(claim("A"), went(a=False, b=True)) == "holds in part"
    assert claims.verdict(claim("A"), went(a=False, b=False)) == "not reproduced"
    assert claims.verdict(claim("A"), went(a=True)) == "not run"
    assert claims.verdict(Claim("A-F1", "A", "w", "s", "not yet"), []) == "not yet"


# The book's own ledger


def references() -> dict[str, dict[str, Any]]:
    """Committed reference notebooks by chapter."""
    return {
        path.relative_to(REFERENCES).with_suffix("").as_posix(): json.loads(path.read_text("utf8"))
        for path in sorted(REFERENCES.rglob("*.ipynb"))
    }


def test_the_ledger_has_all_that_the_papers_have() -> None:
    ids = {claim.id for claim in load()}
    assert set(FIGURES_AND_TABLES.split()) <= ids
    assert set(THEOREMS.split()) <= ids
    for claim in load():
        assert claim.id[0] == {"A": "A", "B": "B", "beyond": "X"}[claim.paper], claim.id


def test_the_number_of_claims_not_yet_shown_only_falls() -> None:
    now = sum(not claim.shown for claim in load())
    assert now <= NOT_YET, f"{now} claims are not shown, {NOT_YET} were: no claim may be dropped"
    assert now == NOT_YET, (
        f"only {now} claims are left to show: lower NOT_YET in this file to {now}"
    )


def test_every_row_points_at_a_chapter_and_a_label_in_it() -> None:
    for claim in load():
        if claim.shown:
            chapter = ROOT / "book" / f"{claim.chapter}.md"
            assert chapter.is_file(), f"{claim.id}: no chapter {claim.chapter}"
            label = (
                rf"^\({re.escape(claim.anchor)}\)=$|^:(?:label|name): {re.escape(claim.anchor)}$"
            )
            found = re.findall(label, chapter.read_text("utf8"), re.MULTILINE)
            assert len(found) == 1, f"{claim.id}: {claim.chapter} has no label {claim.anchor}"


def test_every_part_of_the_ledger_is_checked_by_its_chapter() -> None:
    ran = references()
    for claim in load():
        if claim.shown:
            assert claim.chapter in ran, f"{claim.id}: no reference of {claim.chapter}"
            lines = [c for c in claims.printed(ran[claim.chapter]) if c.claim == claim.id]
            parts = [c.part for c in lines]
            assert sorted(parts) == sorted(p.name for p in claim.parts), claim.id


def test_every_check_that_was_printed_is_as_the_ledger_has_it() -> None:
    rows = {claim.id: claim for claim in load()}
    for chapter, notebook in references().items():
        for checked in claims.printed(notebook):
            claim = rows.get(checked.claim)
            assert claim is not None, f"{chapter} checks {checked.claim}, which has no row"
            assert claim.chapter == chapter, f"{checked.claim} belongs to {claim.chapter}"
            part = {p.name: p for p in claim.parts}[checked.part]
            assert (checked.low, checked.high) == (part.low, part.high), checked
            assert checked.holds != bool(part.fails), checked
            assert checked.seeds >= part.seeds, checked


def test_every_call_of_check_in_the_references_printed_a_line() -> None:
    for chapter, notebook in references().items():
        for cell in notebook["cells"]:
            calls = len(re.findall(r"\bcheck\(\s*[\"']", "".join(cell["source"])))
            if cell["cell_type"] == "code" and calls:
                printed = len(claims.printed({"cells": [cell]}))
                assert printed >= calls, f"{chapter}: {calls} checks, {printed} lines"
