"""The ledger of claims: what the papers say, how the book decides it, and the check itself.

``claims.yml`` has a row for every theorem, figure and table of both papers, and for what the book
adds. A chapter measures and calls `check`, which shows one line and stops the chapter if a part
does not go as the ledger says; `control` feeds the same part with a plausible wrong statement,
which it must reject. Raw values decide, only the line is rounded. The page of claims is made from
the records that travel beside the lines.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike
from scipy import stats

from iclbook import notebook

LEDGER = Path(__file__).with_name("claims.yml")
SCHEMA = Path(__file__).with_name("claims.schema.json")
NOT_YET = "not yet"
PAPERS = ("A", "B", "beyond")
CONFIDENCE = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "inconclusive"
_NOISE = 1e-9  # what is smaller differs from machine to machine


class ClaimError(AssertionError):
    """A claim does not go as the ledger says."""


@dataclass(frozen=True)
class Part:
    """One thing that is measured for a claim, and the bounds that decide it.

    Attributes:
        name: What is claimed, in a few words; unique in its row.
        decided: What is measured and how it is decided.
        rule: ``mean``: the 95 % interval of the mean over seeds; ``every``: each value; ``exact``:
            one number; ``share``: k of n runs, with their exact binomial interval.
        basis: Where the bounds come from: ``theorem``, ``figure``, ``derived`` or ``chosen``.
        low: Least value, None for none.
        high: Greatest value, None for none.
        by: Label of the derivation of the bounds, where they are derived.
        about: ``paper``, or ``beyond``: then it has no say in the verdict on the paper.
        seeds: Least number of values; 1 for ``exact``.
        expect: The verdict that is known.
        reason: Why it is not ``holds``.
    """

    name: str
    decided: str
    rule: str
    basis: str
    low: float | None = None
    high: float | None = None
    by: str = ""
    about: str = "paper"
    seeds: int = 1
    expect: str = HOLDS
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """A row of the ledger. Where no chapter shows it yet, all from `anchor` on is empty.

    Attributes:
        id: Such as ``A-F1``.
        paper: ``A``, ``B`` or ``beyond``.
        where: Its place in the paper.
        says: What is claimed, with its hypotheses.
        chapter: The chapter that shows it, or ``not yet``.
        anchor: The label in that chapter.
        proof: Label of the proof on that page; empty where there is none.
        regime: In which setting a paper's claim was measured.
        uses: Ids of the rows that it rests on.
        control: A plausible wrong statement, `says`, and the `part` that must reject it.
        parts: What is measured.
    """

    id: str
    paper: str
    where: str
    says: str
    chapter: str
    anchor: str = ""
    proof: str = ""
    regime: str = ""
    uses: tuple[str, ...] = ()
    control: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether a chapter shows it."""
        return self.chapter != NOT_YET


@dataclass(frozen=True)
class Checked:
    """What one check found.

    Attributes:
        claim: Id of the row.
        part: Name of the part.
        control: Whether it was the row's wrong statement that was measured.
        verdict: ``holds``, ``does not hold`` or ``inconclusive``.
        measured: The mean, the share, the exact number, or of ``every`` the value least inside the
            bounds.
        interval: The 95 % interval; for ``every`` the least and greatest value; None for ``exact``.
        seeds: Number of values.
        runs: About how many values would tell, where the verdict is inconclusive.
    """

    claim: str
    part: str
    control: bool
    verdict: str
    measured: float
    interval: tuple[float, float] | None
    seeds: int
    runs: int | None


def load(path: Path = LEDGER) -> tuple[Claim, ...]:
    """Read the ledger.

    Raises:
        ValueError: If a row is not as ``claims.schema.json`` says; the message names the row.
    """
    import jsonschema  # takes a second, and a chapter takes the rows as the tests have checked them

    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    if (error := jsonschema.exceptions.best_match(schema.iter_errors(rows))) is not None:
        within = list(error.absolute_path)
        row = rows[within[0]] if within else None
        name = row.get("id", within[0] + 1) if isinstance(row, dict) else "?"
        raise ValueError(f"{path.name}, row {name}, {within[1:]}: {error.message}")
    return tuple(_claim(row) for row in rows)


def _claim(row: dict[str, Any]) -> Claim:
    """A row as the schema has it; its parts inherit the row's seeds."""
    about = "beyond" if row["paper"] == "beyond" else "paper"
    parts = []
    for part in row.get("parts", ()):
        seeds = 1 if part["rule"] == "exact" else row.get("seeds", 2)
        parts.append(Part(**{"about": about, "seeds": seeds} | part))
    kept = {key: value for key, value in row.items() if key != "seeds"}
    return Claim(**kept | {"uses": tuple(row.get("uses", ())), "parts": tuple(parts)})


@functools.cache
def _rows() -> dict[str, Claim]:
    rows = yaml.safe_load(LEDGER.read_text(encoding="utf-8"))
    return {row["id"]: _claim(row) for row in rows}


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % interval, by Student's t.

    Args:
        values: One number per seed, two at least. The interval supposes that they are near normal.

    Returns:
        Mean, lower end and upper end.

    Raises:
        ValueError: If there are fewer than two values, not in one dimension, or some not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs a row of two values or more, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("an interval needs finite values")
    n = len(values)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def pooled_z(z: ArrayLike) -> float:
    """One z-score from those of n independent seeds, sum z / sqrt(n).

    Standard normal if each is, and about b sqrt(n) if each is off by b standard errors: seeds that
    each look harmless fail together.

    Raises:
        ValueError: If there are fewer than two, not in one dimension, or some not finite.
    """
    mean = interval(z)[0]
    return mean * math.sqrt(np.size(z))


def check(claim_id: str, measured: ArrayLike, *, part: str | None = None) -> None:
    """Hold a measurement against a claim of the ledger, and show one line that says how it went.

    Args:
        claim_id: Id of the row.
        measured: Raw, never rounded: by the rule of the part one number (``exact``), one number per
            seed (``mean``, ``every``), or true or false per run (``share``).
        part: Name of the part; may be left out where the row has only one.

    Raises:
        ClaimError: If the verdict is not the one that the ledger expects.
        ValueError: If there is no such row or part, or the measurement is not finite, has too few
            values or the wrong shape.
    """
    claim, chosen = _choose(claim_id, part)
    checked = decide(claim, chosen, measured)
    if checked.verdict != chosen.expect:
        raise ClaimError(f"the ledger expects {chosen.expect!r}, but {line(checked, chosen)}")
    _show(checked, chosen)


def control(claim_id: str, measured: ArrayLike, *, part: str | None = None) -> None:
    """Show that a part of a claim can fail: measured under the row's wrong statement it must.

    Args:
        claim_id: Id of the row.
        measured: What the part would have been fed, were the row's `control` the truth.
        part: Name of the part, the one that the row's `control` names; may be left out as above.

    Raises:
        ClaimError: If the part does not reject the wrong statement.
        ValueError: As `check`, and if the row has no control, or one of another part.
    """
    claim, chosen = _choose(claim_id, part)
    if claim.control.get("part") != chosen.name:
        raise ValueError(f"{claim_id}, {chosen.name}: not the part that the row's control names")
    checked = decide(claim, chosen, measured, control=True)
    if checked.verdict != FAILS:
        raise ClaimError(f"the wrong statement was not rejected: {line(checked, chosen)}")
    _show(checked, chosen)


def _show(checked: Checked, part: Part) -> None:
    notebook.show({"text/plain": line(checked, part)}, {"iclbook": asdict(checked)})


def _choose(claim_id: str, part: str | None) -> tuple[Claim, Part]:
    if claim_id not in _rows():
        raise ValueError(f"the ledger has no row {claim_id!r}")
    claim = _rows()[claim_id]
    names = [own.name for own in claim.parts]
    if not names:
        raise ValueError(f"row {claim.id} has no parts: its chapter is {claim.chapter!r}")
    if part is None and len(names) > 1:
        raise ValueError(f"row {claim.id} has several parts, name one: {', '.join(names)}")
    if part is not None and part not in names:
        raise ValueError(f"row {claim.id} has no part {part!r}, but {', '.join(names)}")
    return claim, claim.parts[0 if part is None else names.index(part)]


def decide(claim: Claim, part: Part, measured: ArrayLike, *, control: bool = False) -> Checked:
    """The verdict on a measurement, by the part's rule.

    Raises:
        ValueError: If the measurement is not finite, has too few values or the wrong shape.
    """
    name = f"{claim.id}, {part.name}"
    values = np.asarray(measured)
    if part.rule == "share" and values.dtype != bool:
        raise ValueError(f"{name}: a share takes true or false per run, not {values.dtype}")
    values = values.astype(float)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: the measurement is not finite")
    if values.ndim != (part.rule != "exact"):
        wanted = "one number" if part.rule == "exact" else "one value per seed"
        raise ValueError(f"{name}: takes {wanted}, not shape {values.shape}")
    if values.size < part.seeds:
        raise ValueError(f"{name}: needs {part.seeds} values, not {values.size}")
    low = -math.inf if part.low is None else part.low
    high = math.inf if part.high is None else part.high
    n, ends = values.size, None
    if part.rule == "exact":
        least = most = best = float(values)
    elif part.rule == "every":
        least, most = ends = float(values.min()), float(values.max())
        best = min(ends, key=lambda value: min(value - low, high - value))
    elif part.rule == "share":
        best = float(values.mean())
        found = stats.binomtest(int(values.sum()), n).proportion_ci(CONFIDENCE, method="exact")
        least, most = ends = float(found.low), float(found.high)
    else:
        best, *span = interval(values)
        least, most = ends = span[0], span[1]
    runs = None
    if low <= least and most <= high:
        verdict = HOLDS
    elif part.rule in ("exact", "every") or most < low or high < least:
        verdict = FAILS
    else:
        verdict = OPEN
        # An interval shrinks like 1/sqrt(n), until it is as short as the way to that bound.
        way = min(abs(best - end) for end in (low, high) if least <= end <= most)
        runs = math.ceil(n * ((most - least) / (2 * way)) ** 2) if way > 0 else None
    return Checked(claim.id, part.name, control, verdict, best, ends, n, runs)


def line(checked: Checked, part: Part) -> str:
    """What `check` shows: row, part, verdict, what was measured, and what is claimed."""
    verdict = checked.verdict
    if checked.control:
        verdict = "wrong statement rejected" if verdict == FAILS else f"wrong statement {verdict}"
    elif checked.runs:
        verdict += f" (about {checked.runs} runs would tell)"
    text = f"{checked.claim} | {checked.part} | {verdict} | {measured_text(checked, part)}"
    return f"{text} | claimed {bounds_text(part)}"


def measured_text(checked: Checked, part: Part) -> str:
    """The measured numbers in words, with as many digits as their interval carries."""
    # A residual far inside its bounds is made of rounding errors, which no two machines share.
    noise = max([_NOISE, *(1e-3 * abs(end) for end in (part.low, part.high) if end is not None)])

    def digits(number: float) -> str:
        return "0" if abs(number) < noise else f"{number:#.4g}".rstrip(".")

    if checked.interval is None:
        return f"{digits(checked.measured)}, exact"
    low, high = checked.interval
    if part.rule == "every":
        ends = sorted({digits(low), digits(high)}, key=float)
        return f"{' to '.join(ends)} in {checked.seeds}"
    half = (high - low) / 2
    places = 4 if half <= _NOISE else max(0, 1 - math.floor(math.log10(half)))
    best, low, high = (round(x, places) + 0.0 for x in (checked.measured, low, high))  # no -0
    span = f"[{low:.{places}f}, {high:.{places}f}]"
    if part.rule == "share":
        return f"{round(checked.measured * checked.seeds)} of {checked.seeds} {span}"
    return f"{best:.{places}f} {span}, {checked.seeds} seeds"


def bounds_text(part: Part) -> str:
    """Bounds in words, with their basis: ``at least 2 (theorem)``, ``in [0.9, 1.1] (chosen)``."""
    if part.high is None:
        text = f"at least {part.low:.10g}"
    elif part.low is None:
        text = f"at most {part.high:.10g}"
    else:
        text = f"in [{part.low:.10g}, {part.high:.10g}]"
    return f"{text} ({part.basis})"
