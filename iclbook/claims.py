"""The ledger of claims: what the papers say, how the book decides it, and the check itself.

``book/claims.yml`` has a row for every theorem, figure and table of both papers. A chapter measures
and calls `check`, which prints one line and stops the chapter if the claim does not hold as stated.
The page of claims is made from the lines that were printed.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike
from scipy import stats

LEDGER = Path(__file__).parents[1] / "book" / "claims.yml"
NOT_YET = "not yet"
PAPERS = ("A", "B", "beyond")
CONFIDENCE = 0.95
_NOISE = 1e-9  # what is smaller is printed as 0: rounding errors differ from machine to machine


class ClaimError(AssertionError):
    """A claim does not hold as the ledger states it."""


@dataclass(frozen=True)
class Part:
    """One thing that is measured for a claim, and the bounds that decide it.

    Attributes:
        name: What is claimed, in a few words; unique in its row.
        decided: What is measured and by which rule it is decided.
        low: Least value, or -inf.
        high: Greatest value, or inf.
        seeds: Least number of seeds; 1 for what is exact.
        fails: Why the part does not hold, where it is known not to; empty otherwise.
    """

    name: str
    decided: str
    low: float
    high: float
    seeds: int
    fails: str = ""


@dataclass(frozen=True)
class Claim:
    """A row of the ledger.

    Attributes:
        id: Such as ``A-F1``.
        paper: ``A``, ``B`` or ``beyond`` (proved in this book).
        where: Its place in the paper.
        says: What is claimed, in one sentence.
        chapter: The chapter that shows it, or ``not yet``.
        anchor: The label in that chapter; empty for ``not yet``.
        parts: What is measured; empty for ``not yet``.
    """

    id: str
    paper: str
    where: str
    says: str
    chapter: str
    anchor: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether a chapter shows it."""
        return self.chapter != NOT_YET


@dataclass(frozen=True)
class Checked:
    """What one printed line says.

    Attributes:
        claim: Id of the row.
        part: Name of the part.
        holds: Whether the part held.
        measured: Mean over seeds, or the exact number.
        interval: Its 95 % interval; None if exact.
        seeds: Number of seeds; 1 if exact.
        low: Least value claimed, or -inf.
        high: Greatest value claimed, or inf.
        text: The measured numbers as printed.
    """

    claim: str
    part: str
    holds: bool
    measured: float
    interval: tuple[float, float] | None
    seeds: int
    low: float
    high: float
    text: str


def load(path: Path = LEDGER) -> tuple[Claim, ...]:
    """Read the ledger.

    Raises:
        FileNotFoundError: If there is no ledger, as where the package was copied without the book.
        ValueError: If a row is not as the head of ``claims.yml`` says; the message names the row.
    """
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    _require(isinstance(rows, list), f"{path.name}: expected a list of rows")
    claims = tuple(_claim(row, place) for place, row in enumerate(rows, start=1))
    ids = [claim.id for claim in claims]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    _require(not twice, f"the ledger has more than one row {', '.join(twice)}")
    return claims


def _claim(row: object, place: int) -> Claim:
    """Validate row number `place` of the ledger."""
    named = isinstance(row, Mapping) and isinstance(row.get("id"), str)
    _require(named, f"row {place} of the ledger has no id")
    name = f"row {row['id']}"
    shown = row.get("chapter") != NOT_YET
    needs = {"id", "paper", "where", "says", "chapter", "seeds"}
    _demand_keys(name, row, needs | ({"anchor", "parts"} if shown else set()))
    for key in needs - {"seeds"} | ({"anchor"} if shown else set()):
        _demand_text(name, key, row[key])
    is_id = re.fullmatch(r"[A-Z](-[A-Za-z0-9.]+)+", row["id"])
    _require(is_id is not None, f"{name}: an id is like A-F1 or B-T3.3")
    _require(row["paper"] in PAPERS, f"{name}: paper is one of {PAPERS}, not {row['paper']!r}")
    seeds = _seeds(name, row["seeds"])
    parts: tuple[Part, ...] = ()
    if shown:
        is_list = isinstance(row["parts"], list) and bool(row["parts"])
        _require(is_list, f"{name}: parts is a list with one part at least")
        parts = tuple(_part(name, part, seeds) for part in row["parts"])
        names = {part.name for part in parts}
        _require(len(names) == len(parts), f"{name}: two parts have the same name")
    return Claim(
        id=row["id"],
        paper=row["paper"],
        where=row["where"],
        says=row["says"],
        chapter=row["chapter"],
        anchor=row.get("anchor", ""),
        parts=parts,
    )


def _part(row: str, part: object, seeds: int) -> Part:
    _require(isinstance(part, Mapping), f"{row}: a part has name, decided, bounds, not {part!r}")
    name = f"{row}, part {part.get('name')!r}"
    _demand_keys(name, part, {"name", "decided"}, {"low", "high", "seeds", "fails"})
    for key in {"name", "decided", "fails"} & part.keys():
        _demand_text(name, key, part[key])
    _require("|" not in part["name"], f"{name}: a name has no |, which separates fields of a line")
    bounds = {key: part[key] for key in ("low", "high") if key in part}
    _require(bool(bounds), f"{name}: needs low, high or both")
    for key, bound in bounds.items():
        is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
        # YAML reads 1e-3 as text, and 1.0e-3 as a number
        _require(
            is_number and math.isfinite(bound),
            f"{name}: {key} is a finite number such as 1.0e-3, not {bound!r}",
        )
    low, high = float(bounds.get("low", -math.inf)), float(bounds.get("high", math.inf))
    _require(low <= high, f"{name}: low {low:g} is above high {high:g}")
    return Part(
        name=part["name"],
        decided=part["decided"],
        low=low,
        high=high,
        seeds=_seeds(name, part.get("seeds", seeds)),
        fails=part.get("fails", ""),
    )


def _demand_keys(
    name: str, row: Mapping[str, Any], needs: set[str], may: set[str] = frozenset()
) -> None:
    missing, unknown = needs - row.keys(), row.keys() - needs - may
    _require(not missing, f"{name}: lacks {', '.join(sorted(missing))}")
    _require(not unknown, f"{name}: has no use for {', '.join(sorted(map(str, unknown)))}")


def _demand_text(name: str, key: str, value: object) -> None:
    is_text = isinstance(value, str) and value != "" and value == value.strip()
    _require(is_text, f"{name}: {key} is text without spaces around it, not {value!r}")


def _seeds(name: str, value: object) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    _require(is_count, f"{name}: seeds is a whole number, 1 (exact) or more, not {value!r}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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


def check(claim_id: str, measured: ArrayLike, *, part: str | None = None) -> None:
    """Hold a measurement against a claim of the ledger, and print one line that says how it went.

    A random part holds if the whole 95 % interval of the mean lies within the bounds; an exact one
    if the number does.

    Args:
        claim_id: Id of the row.
        measured: One number for what is exact, one number per seed for what is random.
        part: Name of the part; may be left out where the row has only one.

    Raises:
        ClaimError: If the part does not hold, or holds where the ledger says that it fails.
        ValueError: If there is no such row or part, or the measurement is not finite, has too few
            seeds or the wrong shape.
    """
    rows = {claim.id: claim for claim in load()}
    if claim_id not in rows:
        raise ValueError(f"the ledger has no row {claim_id!r}")
    line, as_stated = _decide(claim_id, _choose(rows[claim_id], part), measured)
    if not as_stated:
        raise ClaimError(f"not as the ledger says: {line}")
    print(line)


def _choose(claim: Claim, part: str | None) -> Part:
    names = [own.name for own in claim.parts]
    if not names:
        raise ValueError(f"row {claim.id} has no parts: its chapter is {claim.chapter!r}")
    if part is None and len(names) > 1:
        raise ValueError(f"row {claim.id} has several parts, name one: {', '.join(names)}")
    if part is not None and part not in names:
        raise ValueError(f"row {claim.id} has no part {part!r}, but {', '.join(names)}")
    return claim.parts[0 if part is None else names.index(part)]


def _decide(claim_id: str, part: Part, measured: ArrayLike) -> tuple[str, bool]:
    """Line to print, and whether the part went as the ledger says."""
    name = f"{claim_id}, {part.name}"
    values = np.asarray(measured, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: the measurement is not finite")
    if part.seeds == 1:
        if values.ndim != 0:
            raise ValueError(f"{name}: is exact and takes one number, not shape {values.shape}")
        low = high = float(values)
        text = f"{_digits(low)}, exact"
    else:
        if values.ndim != 1:
            raise ValueError(f"{name}: takes one number per seed, not shape {values.shape}")
        if len(values) < part.seeds:
            raise ValueError(f"{name}: needs {part.seeds} seeds, not {len(values)}")
        mean, low, high = interval(values)
        text = f"{_digits(mean)} [{_digits(low)}, {_digits(high)}], {len(values)} seeds"
    holds = part.low <= low and high <= part.high
    verdict = "holds" if holds else "does not hold"
    line = f"{claim_id} | {part.name} | {verdict} | measured {text} | claimed {bounds_text(part)}"
    return line, holds != bool(part.fails)


def _digits(number: float) -> str:
    """Four significant digits; 0 for what is smaller than rounding errors can be."""
    return "0" if abs(number) < _NOISE else f"{number:#.4g}".rstrip(".")


def bounds_text(bounds: Part | Checked) -> str:
    """Bounds in words: ``in [0.99, 1.02]``, ``at least 2`` or ``at most 1e-06``."""
    if math.isinf(bounds.high):
        return f"at least {bounds.low:.10g}"
    if math.isinf(bounds.low):
        return f"at most {bounds.high:.10g}"
    return f"in [{bounds.low:.10g}, {bounds.high:.10g}]"


_NUMBER = r"-?\d[\d.]*(?:e[+-]\d+)?"
_LINE = re.compile(
    r"(?P<claim>[A-Z]-[\w.-]+) \| (?P<part>[^|\n]+) \| (?P<verdict>holds|does not hold)"
    rf" \| measured (?P<text>(?P<measured>{_NUMBER})"
    rf"(?:, exact| \[(?P<from>{_NUMBER}), (?P<to>{_NUMBER})\], (?P<seeds>\d+) seeds))"
    rf" \| claimed (?:in \[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\]"
    rf"|at least (?P<least>{_NUMBER})|at most (?P<most>{_NUMBER}))"
)


def parse_line(line: str) -> Checked | None:
    """Read a line that `check` printed.

    Returns:
        What the line says; None for any other line.
    """
    match = _LINE.fullmatch(line.strip())
    if match is None:
        return None
    found = match.groupdict()
    exact = found["seeds"] is None
    return Checked(
        claim=found["claim"],
        part=found["part"],
        holds=found["verdict"] == "holds",
        measured=float(found["measured"]),
        interval=None if exact else (float(found["from"]), float(found["to"])),
        seeds=1 if exact else int(found["seeds"]),
        low=float(found["low"] or found["least"] or -math.inf),
        high=float(found["high"] or found["most"] or math.inf),
        text=found["text"],
    )


def printed(notebook: Mapping[str, Any]) -> tuple[Checked, ...]:
    """Checks that a notebook printed, in order.

    Args:
        notebook: In the format of nbformat 4, executed.
    """
    lines: list[str] = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                lines += "".join(output["text"]).splitlines()
    return tuple(checked for line in lines if (checked := parse_line(line)) is not None)


def verdict(claim: Claim, results: Iterable[Checked]) -> str:
    """Verdict on a row, from the lines that were printed.

    Returns:
        ``holds`` (``proved here`` for what is beyond the papers) if all parts hold, ``holds in
        part`` if some do, ``not reproduced`` if none does, ``not run`` if a part has no line, and
        ``not yet`` if no chapter shows the row.
    """
    if not claim.shown:
        return NOT_YET
    went = {result.part: result.holds for result in results if result.claim == claim.id}
    parts = [went.get(part.name) for part in claim.parts]
    if None in parts:
        return "not run"
    if all(parts):
        return "proved here" if claim.paper == "beyond" else "holds"
    return "holds in part" if any(parts) else "not reproduced"
