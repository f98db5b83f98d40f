"""The ledger against the book: what the runs found, verdicts on rows, and whether pages agree."""

import graphlib
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from nbformat import NotebookNode

from iclbook.claims import (
    FAILS,
    HOLDS,
    NOT_YET,
    OPEN,
    Checked,
    Claim,
    Part,
    bounds_text,
    measured_text,
)
from iclbook.figures import with_mathematics

CLAIMS_PAGE = "claims.html"
KEPT = ("claim", "part", "control", "verdict")  # what a reference keeps of a record
_PROVES = "proposition|theorem|lemma|corollary|proof"


def records(executed: Mapping[str, Any]) -> tuple[Checked, ...]:
    """What the checks and controls of an executed notebook (nbformat 4) found, in order."""
    names = {field.name for field in fields(Checked)}
    found = []
    for cell in executed["cells"]:
        for output in cell.get("outputs", ()):
            record = output.get("metadata", {}).get("iclbook")
            if record is not None and record.keys() == names:
                ends = record["interval"]
                found.append(Checked(**{**record, "interval": ends and tuple(ends)}))
    return tuple(found)


def verdict(claim: Claim, results: Iterable[Checked]) -> str:
    """Verdict on a row, from what was found.

    Only parts about the paper decide a paper's row. All hold: ``holds``, and for what is beyond the
    papers ``proved here`` with a proof, ``measured here`` without. Some hold: ``holds in part``.
    None does: ``not reproduced``, or ``inconclusive`` if one part is. ``not run`` if a part has no
    record, ``not yet`` if no chapter shows the row.
    """
    if not claim.shown:
        return NOT_YET
    own = {r.part: r.verdict for r in results if r.claim == claim.id and not r.control}
    about = "beyond" if claim.paper == "beyond" else "paper"
    if any(part.name not in own for part in claim.parts):
        return "not run"
    found = [own[part.name] for part in claim.parts if part.about == about]
    if all(one == HOLDS for one in found):
        if claim.paper != "beyond":
            return HOLDS
        return "proved here" if claim.proof else "measured here"
    if HOLDS in found:
        return "holds in part"
    return OPEN if OPEN in found else "not reproduced"


def report(claim: Claim, results: Iterable[Checked]) -> dict[str, Any]:
    """A row with what was measured, as ``claims.json`` has it; null where nothing was."""
    own = {r.part: r for r in results if r.claim == claim.id and not r.control}
    parts = []
    for part in claim.parts:
        r = own.get(part.name)
        parts.append(
            {
                "name": part.name,
                "rule": part.rule,
                "about": part.about,
                "basis": part.basis,
                "verdict": r and r.verdict,
                "measured": r and r.measured,
                "interval": r and r.interval and list(r.interval),
                "seeds": r and r.seeds,
                "low": part.low,
                "high": part.high,
            }
        )
    return {
        "id": claim.id,
        "paper": claim.paper,
        "where": claim.where,
        "verdict": verdict(claim, own.values()),
        "chapter": claim.chapter,
        "anchor": claim.anchor,
        "uses": list(claim.uses),
        "parts": parts,
    }


# Agreement


def inconsistencies(claims: Iterable[Claim]) -> list[str]:
    """What the schema cannot see: names that do not fit, bounds that cross, circles of uses."""
    claims, problems = list(claims), []
    ids = [claim.id for claim in claims]
    problems += [f"the ledger has more than one row {name}" for name in twice(ids)]
    for claim in claims:
        names = [part.name for part in claim.parts]
        problems += [f"row {claim.id}: two parts are called {name!r}" for name in twice(names)]
        problems += [f"row {claim.id}: uses {one}, no row" for one in claim.uses if one not in ids]
        if claim.control and claim.control["part"] not in names:
            problems.append(f"row {claim.id}: its control names no part: {claim.control['part']!r}")
        if (
            claim.shown
            and claim.paper != "beyond"
            and all(p.about == "beyond" for p in claim.parts)
        ):
            problems.append(f"row {claim.id}: no part is about the paper")
        for part in claim.parts:
            if part.low is not None and part.high is not None and part.low > part.high:
                problems.append(f"row {claim.id}, part {part.name!r}: low is above high")
    try:
        graphlib.TopologicalSorter({claim.id: claim.uses for claim in claims}).prepare()
    except graphlib.CycleError as error:
        problems.append(f"rows use each other in a circle: {' -> '.join(error.args[1])}")
    return problems


def twice(names: list[str]) -> list[str]:
    """Names that come more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})


def labels(page: str) -> list[str]:
    """All labels of a page: of sections, directives and equations."""
    found = re.findall(r"^\(([\w.-]+)\)=$|^:(?:label|name): +([\w.-]+)$", page, re.MULTILINE)
    return [a or b for a, b in found] + re.findall(r"^\$\$ +\(([\w.-]+)\)$", page, re.MULTILINE)


def proofs(page: str) -> set[str]:
    """Labels of the propositions, theorems and proofs of a page that are followed by a proof."""
    box = rf"^(:{{3,}}|`{{3,}})\{{prf:(?:{_PROVES})\}}[^\n]*\n(?:[^\n]*\n)*?\1$"
    found = set()
    for match in re.finditer(box, page, re.MULTILINE):
        label = re.search(r"^:label: +([\w.-]+)$", match[0], re.MULTILINE)
        after = page[match.end() :].split("{code-cell}")[0]
        proved = "{prf:proof}" in match[0] or re.search(
            r"\*Proof|\{prf:proof\}|\{admonition\} Proof", after
        )
        if label and proved:
            found.add(label[1])
    return found


def roles(page: str) -> set[str]:
    """Ids that a page refers to with the role ``{claim}``."""
    return set(re.findall(r"\{claim\}`([A-Z][\w.-]*)`", page))


def disagreements(claims: Iterable[Claim], pages: Mapping[str, str]) -> list[str]:
    """Where the ledger and the pages of the chapters do not fit together.

    Args:
        claims: The ledger.
        pages: Source of each chapter, by its id.
    """
    claims = [claim for claim in claims if claim.shown]
    chapter_of = {claim.id: claim.chapter for claim in claims}
    problems: list[str] = []
    for claim in claims:
        if claim.chapter in pages:
            problems += _missing(claim, pages[claim.chapter], chapter_of)
        else:
            problems.append(f"row {claim.id}: there is no chapter {claim.chapter}")
    for chapter, page in pages.items():
        used = {name for claim in claims if claim.chapter == chapter for name in claim.uses}
        for name in sorted(roles(page)):
            if name not in chapter_of:
                problems.append(f"{chapter} names {name}, which is no row that a chapter shows")
            elif chapter_of[name] != chapter and name not in used:
                problems.append(f"{chapter} names {name}, which none of its rows uses")
    return problems


def _missing(claim: Claim, page: str, chapter_of: Mapping[str, str]) -> list[str]:
    """What a row points at and its page has not."""
    known, named = labels(page), roles(page)
    wanted = dict.fromkeys([claim.anchor, *(part.by for part in claim.parts if part.by)])
    missing = [f"has no label {label}" for label in wanted if known.count(label) != 1]
    if claim.proof and claim.proof not in proofs(page):
        missing.append(f"proves nothing called {claim.proof}")
    elsewhere = [name for name in claim.uses if chapter_of.get(name, "") != claim.chapter]
    missing += [
        f"never says {{claim}}`{name}`" for name in [claim.id, *elsewhere] if name not in named
    ]
    return [f"row {claim.id}: {claim.chapter} {what}" for what in missing]


def unchecked(claims: Iterable[Claim], references: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the checks and controls on record are not those of the ledger.

    Args:
        claims: The ledger.
        references: Committed references (nbformat 4), by chapter.
    """
    problems = []
    wanted: dict[tuple[str, str, str, bool], str] = {}
    for claim in claims:
        for part in claim.parts:
            wanted[claim.chapter, claim.id, part.name, False] = part.expect
        if claim.control:
            wanted[claim.chapter, claim.id, claim.control["part"], True] = FAILS
    seen = []
    for chapter, notebook in references.items():
        for cell in notebook["cells"]:
            for output in cell.get("outputs", ()):
                record = output.get("metadata", {}).get("iclbook")
                if record is None:
                    continue
                key = (chapter, record["claim"], record["part"], record["control"])
                seen.append(key)
                if wanted.get(key) != record["verdict"]:
                    problems.append(f"{_name(key)} went {record['verdict']!r}: not in the ledger")
    problems += [
        f"{_name(key)} is shown {seen.count(key)} times" for key in set(seen) if seen.count(key) > 1
    ]
    problems += [f"{_name(key)} is never shown" for key in wanted if key not in seen]
    return sorted(problems)


def _name(key: tuple[str, str, str, bool]) -> str:
    chapter, claim, part, control = key
    return f"{chapter}: {'control of ' if control else ''}{claim}, {part!r}"


# On the page


def chip(checked: Checked, claim: Claim, part: Part) -> str:
    """A check as the site shows it: HTML of the sentence, the numbers, the bound, the verdict."""
    if checked.control:
        said, state = f"Control: {claim.control['says']}", "rejected"
    else:
        said, state = part.name, checked.verdict
    told = f" (about {checked.runs} runs would tell)" if checked.runs else ""
    up = "../" * claim.chapter.count("/")  # from the chapter to the folder of the page of claims
    return (
        f'<p class="icl-chip icl-{state.replace(" ", "-")}">'
        f'<a href="{up}{CLAIMS_PAGE}#{claim.id}">{claim.id}</a> '
        f'<strong class="icl-state">{state}</strong> '
        f'<span class="icl-said">{with_mathematics(said)}</span> '
        f'<span class="icl-measured">{html.escape(measured_text(checked, part))}{told}</span> '
        f'<span class="icl-bound">{html.escape(bounds_text(part))}</span></p>'
    )


def decorate(outputs: list[NotebookNode], rows: Mapping[str, Claim]) -> None:
    """Give the outputs of a cell that are checks the HTML that the site shows."""
    for output in outputs:
        for checked in records({"cells": [{"outputs": [output]}]}):
            claim = rows[checked.claim]
            part = next(part for part in claim.parts if part.name == checked.part)
            output["data"]["text/html"] = chip(checked, claim, part)
