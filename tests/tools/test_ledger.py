"""The ledger against the book: records, verdicts, agreement with pages, and what the site shows."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jsonschema
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from iclbook.claims import Checked, Claim, Part, load
from tools import ledger

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tools/claims_json.schema.json").read_text("utf8"))

# Rows that no chapter shows yet. It may only fall: lower it with every chapter.
NOT_YET = 4

# What the papers hold, by the ids that the book gave them
FIGURES_AND_TABLES = (
    "A-F1 A-T1 B-F1 B-F2A B-F2B B-F2C B-F2D B-F3a B-F3b B-F4A B-F4B B-F5A B-F5B B-F6 B-F7"
)
THEOREMS = "A-gap A-gdbeta A-ltbopt A-gdmin A-nearbayes A-flow B-T3.3 B-T3.4 B-T3.7 B-P4.1 B-mlp"

FIRST = Part("first", "d", "mean", "chosen", 0.9, 1.1, seeds=3)
SECOND = Part("second", "d", "exact", "derived", low=5.0, by="prop-second")
ROW = Claim(
    "A-F1",
    *("A", "Figure 1", "It says.", "linear/trial", "trial"),
    regime="At d = 5.",
    control={"says": "$M$ for $M+1$", "part": "first"},
    parts=(FIRST, SECOND),
)
PAGE = """# Trial

(trial)=
## What

{claim}`A-F1`

:::{prf:proposition} A bound
:label: prop-second

It is five.
:::

*Proof.* Count. $\\blacksquare$

$$
5
$$ (eq-five)
"""


def checked(part: str, verdict: str = "holds", *, control: bool = False) -> Checked:
    return Checked("A-F1", part, control, verdict, 1.0, (0.95, 1.05), 3, None)


def notebook(*found: Checked) -> nbformat.NotebookNode:
    outputs = [
        v4.new_output("display_data", {"text/plain": "line"}, metadata={"iclbook": asdict(one)})
        for one in found
    ]
    return v4.new_notebook(cells=[v4.new_code_cell("check()", outputs=outputs)])


def test_records_survive_the_notebook_s_file() -> None:
    found = (checked("first"), replace(checked("second"), interval=None, seeds=1))
    written = nbformat.reads(nbformat.writes(notebook(*found)), as_version=4)
    assert ledger.records(written) == found


def test_other_outputs_are_not_taken_for_records() -> None:
    cells = [
        v4.new_code_cell(
            "1",
            outputs=[
                v4.new_output("stream", text="A-F1 | first | holds"),
                v4.new_output("display_data", {"text/plain": "x"}),
                v4.new_output("display_data", {}, metadata={"iclbook": {"claim": "A-F1"}}),
            ],
        )
    ]
    assert ledger.records(v4.new_notebook(cells=cells)) == ()


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("holds", "holds", "holds"),
        ("holds", "does not hold", "holds in part"),
        ("inconclusive", "holds", "holds in part"),
        ("does not hold", "does not hold", "not reproduced"),
        ("inconclusive", "does not hold", "inconclusive"),
    ],
)
def test_verdicts_follow_from_the_parts(first: str, second: str, verdict: str) -> None:
    results = [checked("first", first), checked("second", second)]
    assert ledger.verdict(ROW, results) == verdict


def test_a_row_beyond_the_papers_is_proved_or_measured() -> None:
    results = [checked("first"), checked("second")]
    own = tuple(replace(part, about="beyond") for part in ROW.parts)
    beyond = replace(ROW, paper="beyond", parts=own)
    assert ledger.verdict(beyond, results) == "measured here"
    assert ledger.verdict(replace(beyond, proof="prop-second"), results) == "proved here"


def test_what_the_book_adds_does_not_lower_a_paper_s_verdict() -> None:
    added = replace(ROW, parts=(FIRST, replace(SECOND, about="beyond")))
    results = [checked("first"), checked("second", "does not hold")]
    assert ledger.verdict(added, results) == "holds"
    assert ledger.verdict(ROW, results) == "holds in part"


def test_what_has_not_run_has_no_verdict() -> None:
    assert ledger.verdict(ROW, [checked("first")]) == "not run"
    control = checked("second", "does not hold", control=True)
    assert ledger.verdict(ROW, [checked("first"), control]) == "not run"
    assert ledger.verdict(Claim("A-F1", "A", "w", "s", "not yet"), []) == "not yet"


def test_the_report_is_as_its_schema_says() -> None:
    second = replace(checked("second"), interval=None, seeds=1)
    for results in ([], [checked("first"), second]):
        row = ledger.report(ROW, results)
        jsonschema.validate([json.loads(json.dumps(row, allow_nan=False))], SCHEMA)
        assert row["parts"][0]["measured"] == (1.0 if results else None)
        assert row["parts"][1]["low"] == 5.0
        assert row["parts"][1]["high"] is None
    broken = ledger.report(ROW, []) | {"verdict": "proved"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([broken], SCHEMA)


# Agreement


def test_a_ledger_that_fits_together_has_no_inconsistencies() -> None:
    assert ledger.inconsistencies([ROW, replace(ROW, id="A-F2", uses=("A-F1",))]) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROW, ROW], "more than one row A-F1"),
        ([replace(ROW, parts=(FIRST, FIRST))], "two parts are called 'first'"),
        ([replace(ROW, uses=("A-F9",))], "uses A-F9, no row"),
        ([replace(ROW, control={"says": "x", "part": "third"})], "names no part: 'third'"),
        ([replace(ROW, parts=(replace(FIRST, low=2.0), SECOND))], "low is above high"),
        ([replace(ROW, parts=(replace(FIRST, about="beyond"),))], "no part is about the paper"),
        ([replace(ROW, uses=("A-F2",)), replace(ROW, id="A-F2", uses=("A-F1",))], "in a circle"),
        ([replace(ROW, uses=("A-F1",))], "in a circle"),
    ],
)
def test_inconsistencies_are_named(rows: list[Claim], said: str) -> None:
    problems = ledger.inconsistencies(rows)
    assert any(said in problem for problem in problems), problems


OTHER = replace(ROW, id="A-F2", chapter="linear/other", anchor="other", uses=("A-F1",))
OTHER_PAGE = PAGE.replace("(trial)=", "(other)=").replace("`A-F1`", "`A-F2` rests on {claim}`A-F1`")


def test_pages_that_agree_with_the_ledger_have_no_problems() -> None:
    pages = {"linear/trial": PAGE, "linear/other": OTHER_PAGE}
    assert ledger.disagreements([ROW, OTHER], pages) == []
    proved = replace(ROW, paper="beyond", proof="prop-second")
    assert ledger.disagreements([proved], {"linear/trial": PAGE}) == []
    by_equation = replace(ROW, parts=(replace(SECOND, by="eq-five"), FIRST))
    assert ledger.disagreements([by_equation], {"linear/trial": PAGE}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("(trial)=", "(trail)="), "has no label trial"),
        ((":label: prop-second", ":label: prop-first"), "has no label prop-second"),
        (("{claim}`A-F1`", "A-F1"), "never says {claim}`A-F1`"),
        (("*Proof.* Count.", "Count."), "proves nothing called prop-second"),
        (("prf:proposition", "admonition"), "proves nothing called prop-second"),
        (("{claim}`A-F1`", "{claim}`A-F1` {claim}`A-F9`"), "names A-F9, which is no row"),
    ],
)
def test_pages_that_disagree_with_the_ledger_are_named(changed: tuple[str, str], said: str) -> None:
    proved = replace(ROW, paper="beyond", proof="prop-second")
    problems = ledger.disagreements([proved], {"linear/trial": PAGE.replace(*changed)})
    assert any(said in problem for problem in problems), problems


def test_edges_and_references_of_pages_must_match() -> None:
    silent = OTHER_PAGE.replace(" rests on {claim}`A-F1`", "")
    problems = ledger.disagreements([ROW, OTHER], {"linear/trial": PAGE, "linear/other": silent})
    assert problems == ["row A-F2: linear/other never says {claim}`A-F1`"]
    unused = replace(OTHER, uses=())
    problems = ledger.disagreements(
        [ROW, unused], {"linear/trial": PAGE, "linear/other": OTHER_PAGE}
    )
    assert problems == ["linear/other names A-F1, which none of its rows uses"]


def test_checks_on_record_are_those_of_the_ledger() -> None:
    control = checked("first", "does not hold", control=True)
    whole = (checked("first"), checked("second"), control)
    assert ledger.unchecked([ROW], {"linear/trial": notebook(*whole)}) == []
    for found, said in (
        (whole[1:], "A-F1, 'first' is never shown"),
        (whole[:2], "control of A-F1, 'first' is never shown"),
        ((*whole, whole[0]), "is shown 2 times"),
        ((checked("first", "inconclusive"), *whole[1:]), "went 'inconclusive': not in the ledger"),
        ((*whole, checked("third")), "A-F1, 'third' went 'holds': not in the ledger"),
    ):
        problems = ledger.unchecked([ROW], {"linear/trial": notebook(*found)})
        assert any(said in problem for problem in problems), (said, problems)


# On the page


def test_a_chip_says_what_a_referee_asks() -> None:
    nb = notebook(checked("first"), checked("first", "does not hold", control=True))
    outputs = nb.cells[0].outputs
    ledger.decorate(outputs, {"A-F1": replace(ROW, parts=(replace(FIRST, name="first"), SECOND))})
    chip, control = (BeautifulSoup(one.data["text/html"], "html.parser") for one in outputs)
    assert chip.a["href"] == "../claims.html#A-F1"
    text = " ".join(chip.get_text().split())
    assert text == "A-F1 holds first 1.000 [0.950, 1.050], 3 seeds in [0.9, 1.1] (chosen)"
    assert r"\(M\) for \(M+1\)" in control.get_text()
    assert len(control.select("span.math")) == 2
    assert control.strong.get_text() == "rejected"


def test_chips_leave_other_outputs_alone() -> None:
    outputs = [v4.new_output("display_data", {"text/plain": "x"}), v4.new_output("stream", text="")]
    ledger.decorate(outputs, {})
    assert "text/html" not in outputs[0].data


# The book's own ledger


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
