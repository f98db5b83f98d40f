"""The site's own extension, on a small book: the ledger, the status, and figures without words."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jsonschema
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat import v4

from iclbook.claims import Checked

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "book/_ext"

CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_nb", "iclsite"]
root_doc = "book/index"
exclude_patterns = ["_build"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
icl_budget_seconds = 30
"""

HEADER = """---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---
"""

PAGES = {
    "index": "# Small book\n```{toctree}\n"
    "linear/trial\nlinear/other\nclaims\nstatus\nspoken\n```\n",
    "linear/trial": f"{HEADER}# A trial of $M$ tokens\n\n(Gap)=\n## Gap\n\nText.\n\n"
    "See {claim}`A-F1`.\n\n$$\n1\n$$ (five)\n",
    "linear/other": f"{HEADER}# Another\n\n(there)=\nText.\n",
    "claims": "# Claims\n## A\n```{ledger} A\n```\n## B\n```{ledger} B\n```\n"
    "## More\n```{ledger} beyond\n```\n",
    "status": "# Status\n```{run-status}\n```\n\n![A dot](dot.png)\n\n"
    "```{image} dot.png\n:alt: A dot\n```\n",
}


def row(name: str, chapter: str, anchor: str, *parts: dict[str, object], **more: object) -> dict:
    paper = {"A": "A", "B": "B", "X": "beyond"}[name[0]]
    head = {"id": name, "paper": paper, "where": "Figure 1", "says": f"{name} says $x < 1$."}
    head |= {"chapter": chapter}
    return head | ({"anchor": anchor, "seeds": 3, "parts": list(parts)} | more if parts else {})


FIRST: dict[str, object] = {"name": "first", "decided": "By $d/M$.", "rule": "mean"}
FIRST |= {"low": 0.9, "high": 1.1, "basis": "chosen"}
SECOND: dict[str, object] = {"name": "second", "decided": "By sight.", "rule": "exact", "low": 5}
SECOND |= {"basis": "derived", "by": "five"}
PAPER = {"regime": "At $d=5$.", "control": {"says": "$M$ for $M+1$.", "part": "first"}}
FAILING = SECOND | {"expect": "does not hold", "reason": "Too few $d$."}
LEDGER = [
    row("A-F1", "linear/trial", "Gap", FIRST, FAILING, uses=["X-min"], **PAPER),
    row("A-F2", "linear/other", "there", FIRST, **PAPER),
    row("A-F3", "not yet", ""),
    row("B-F1", "not yet", ""),
    row("X-min", "linear/trial", "Gap", SECOND),
]
RECORDS = (
    Checked("A-F1", "first", False, "holds", 1.0, (0.95, 1.05), 3, None),
    Checked("A-F1", "second", False, "does not hold", 4.0, None, 1, None),
    Checked("X-min", "second", False, "holds", 7.25, None, 1, None),
)


def notebook(*html: str) -> str:
    """Notebook with these HTML outputs."""
    outputs = [v4.new_output("display_data", {"text/html": text}) for text in html]
    nb = v4.new_notebook(
        cells=[v4.new_markdown_cell("# N"), v4.new_code_cell("1", outputs=outputs)]
    )
    nb.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    return nbformat.writes(nb)


# A grey dot
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
SPOKEN = (
    '<svg role="img" aria-label="A dot"></svg>',
    '<svg aria-hidden="true"/>',
    '<img alt="A dot" src="data:,"/>',
    r'<figcaption><span class="math notranslate nohighlight">\(x\)</span></figcaption>',
)


def write_book(root: Path, **changed: str) -> None:
    """Write the small book without any run."""
    (root / "conf.py").write_text(CONF)
    for name, text in (PAGES | changed).items():
        page = root / "book" / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
    (root / "iclbook").mkdir(exist_ok=True)
    (root / "iclbook/claims.yml").write_text(yaml.safe_dump(LEDGER))
    (root / "book/spoken.ipynb").write_text(notebook(*SPOKEN))
    (root / "book/dot.png").write_bytes(DOT)


def write_run(root: Path) -> None:
    """Write the run of the one chapter that has run."""
    outputs = [
        v4.new_output("display_data", {"text/plain": ""}, metadata={"iclbook": asdict(record)})
        for record in RECORDS
    ]
    nb = v4.new_notebook(cells=[v4.new_code_cell("check()", outputs=outputs)])
    nb.metadata["iclbook"] = {
        "key": "0" * 64,
        "seconds": 42.25,
        "peak_mib": 321.5,
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "cpus": 2,
        "when": "2026-03-04T05:06:07+00:00",
    }
    path = root / "_build/runs/linear/trial.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """Build the small book with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html"]
    return subprocess.run([*command, root, root / "_build/html"], capture_output=True, text=True)


def page(root: Path, name: str) -> Tag:
    html = (root / f"_build/html/book/{name}.html").read_text("utf8")
    return BeautifulSoup(html, "html.parser").find(role="main")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small book, built before its chapter ran (copied to `before`) and once more after."""
    root = tmp_path_factory.mktemp("book")
    write_book(root)
    first = build(root)
    assert first.returncode == 0, first.stderr
    shutil.copytree(root / "_build/html", root / "_build/before/_build/html")
    write_run(root)
    second = build(root)
    assert second.returncode == 0, second.stderr
    return root


def cells(root: Path, claim: str) -> list[str]:
    """Texts of the ledger's cells of a row."""
    for line in page(root, "claims").select("table.icl-ledger tbody tr"):
        found = [" ".join(cell.get_text(" ").split()) for cell in line.find_all("td")]
        if found[0].startswith(claim):
            return found
    raise AssertionError(f"no row {claim}")


def test_the_ledger_shows_what_was_measured_and_the_verdict(built: Path) -> None:
    claim, measured, verdict = cells(built, "A-F1")
    assert claim == (
        r"A-F1 , Figure 1 A-F1 says \(x < 1\) . Measured at: At \(d=5\) . Rests on: X-min . "
        r"Must reject: \(M\) for \(M+1\) ."
    )
    assert measured == (
        r"first 1.000 [0.950, 1.050], 3 seeds ; claimed in [0.9, 1.1] (chosen) By \(d/M\) . "
        "second 4.000, exact (does not hold) ; claimed at least 5 (derived) "
        r"where the bound comes from By sight. Reason: Too few \(d\) ."
    )
    assert verdict.startswith("holds in part")
    assert cells(built, "X-min")[2].startswith("measured here")


def test_every_row_has_its_id_as_anchor_and_pages_link_to_it(built: Path) -> None:
    claims = page(built, "claims")
    assert [claims.find(id=row["id"]) is not None for row in LEDGER] == [True] * len(LEDGER)
    assert page(built, "linear/trial").select_one("a.icl-claim")["href"] == "../claims.html#A-F1"
    bound = claims.find("a", string="where the bound comes from")
    assert bound["href"] == "linear/trial.html#equation-five"
    assert page(built, "linear/trial").find(id="equation-five") is not None


def test_claims_json_is_as_its_schema_says(built: Path) -> None:
    html = built / "_build/html"
    rows = json.loads((html / "claims.json").read_text("utf8"))
    schema = json.loads((ROOT / "tools/claims_json.schema.json").read_text("utf8"))
    jsonschema.validate(rows, schema)
    assert [row["id"] for row in rows] == [row["id"] for row in LEDGER]
    assert rows[0]["parts"][0]["interval"] == [0.95, 1.05]
    assert 'data-to="book/claims.html"' in (html / "claims.html").read_text("utf8")


def test_a_chapter_that_has_not_run_is_said_not_to_have_run(built: Path) -> None:
    assert "no run recorded" in cells(built, "A-F2")[1]
    assert cells(built, "A-F2")[2].startswith("not run")


def test_rows_without_a_chapter_are_listed(built: Path) -> None:
    waiting = [item.get_text() for item in page(built, "claims").select("ul.icl-waiting > li")]
    assert [text.split(",")[0] for text in waiting] == ["A-F3", "B-F1"]
    counts = [p.get_text() for p in page(built, "claims").select("section > p")]
    assert "Of 3 results: holds in part 1, not run 1, not yet 1." in counts


def test_rows_link_to_their_place_in_the_chapter(built: Path) -> None:
    links = page(built, "claims").select("table.icl-ledger td:last-child a.reference.internal")
    assert {link["href"] for link in links} == {"linear/trial.html#gap", "linear/other.html#there"}
    assert "A trial of M tokens" in {link.get_text() for link in links}
    assert page(built, "linear/trial").find(id="gap") is not None


def test_the_status_holds_each_chapter_against_its_budget(built: Path) -> None:
    lines = page(built, "status").select("table.icl-status tbody tr")
    found = {line.find("a")["href"]: line.get_text("|", strip=True) for line in lines}
    assert (
        "42.2 of 30 s, over budget|321.5 of 2048 MiB|2026-03-04 05:06 UTC"
        in (found["linear/trial.html"])
    )
    assert found["linear/other.html"] == "Another|no run recorded"
    text = page(built, "status").get_text()
    assert "Python 3.11.9 on Linux-6.1-x86_64, 2 processor cores." in text
    assert "torch 2." in text


def test_pages_follow_the_runs_without_being_touched(built: Path) -> None:
    before = built / "_build/before"
    assert "none of the 2 chapters has been run" in page(before, "status").get_text()
    assert cells(before, "A-F1")[2].startswith("not run")


def test_figures_with_words_pass_and_their_captions_have_mathjax(built: Path) -> None:
    assert page(built, "spoken").select("svg[aria-label]")
    assert "mathjax" in (built / "_build/html/book/spoken.html").read_text("utf8").lower()


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Warnings of a book in which much is wrong."""
    root = tmp_path_factory.mktemp("broken")
    write_book(
        root,
        **{
            "linear/other": PAGES["linear/other"].replace("(there)=\n", ""),
            "status": "# S\n{claim}`A-F9`\n\n```{ledger} C\n```\n![](dot.png)\n\n"
            "```{image} dot.png\n```\n\n```{figure} dot.png\n\nCaption.\n```\n",
        },
    )
    silent = ('<svg viewBox="0 0 1 1"></svg>', '<img src="data:,">', '<svg aria-label=" "/>')
    (root / "book/spoken.ipynb").write_text(notebook(*silent))
    result = build(root)
    assert result.returncode == 1
    return result.stderr


def test_every_image_of_a_page_without_words_fails_the_build(complaints: str) -> None:
    assert len(re.findall(r"status.md.*the image .*dot.png has no alt text", complaints)) == 3


def test_every_output_of_a_cell_without_words_fails_the_build(complaints: str) -> None:
    assert len(re.findall(r"spoken.ipynb.*<svg> in the output of a cell", complaints)) == 2
    assert len(re.findall(r"spoken.ipynb.*<img> in the output of a cell", complaints)) == 1
    assert complaints.count("has no alt text") == 6


def test_a_dead_label_and_an_unknown_paper_fail_the_build(complaints: str) -> None:
    assert "undefined label: 'there'" in complaints
    assert "ledger takes one of A, B, beyond, not 'C'" in complaints
    assert "the ledger has no row 'A-F9'" in complaints
