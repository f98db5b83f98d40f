"""What makes a run stale, what does not, and that a run which is not sound counts as none."""

import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from small_book import change, write

from tools import stale
from tools.book import Book

ROW = """\
- id: A-F1
  paper: A
  where: Figure 1
  says: Something.
  chapter: a/one
  anchor: here
  regime: At d = 5.
  uses: [A-F2]
  control: {says: Something else., part: p}
  seeds: 8
  parts:
    - {name: p, decided: By sight., rule: mean, low: 0.9, basis: derived, by: eq, expect: holds}
- {id: A-F2, paper: A, where: Figure 2, says: More., chapter: a/two, parts: [{name: q, low: 1}]}
"""
CODE = '''\
"""Module."""

from dataclasses import dataclass


@dataclass
class Task:
    """Class."""

    d: int
    """Attribute."""


def double(x):
    """Function."""
    # comment
    return 2 * x
'''


@pytest.fixture
def small(unrun: Book) -> Book:
    """A book with all that a key has."""
    package = unrun.root / "iclbook"
    write(unrun.ledger, ROW)
    write(package / "shared.py", CODE)
    write(package / "table.csv", "1,2\n3,4\n")
    write(package / "a" / "deep" / "nested.py", "nested = 1\n")
    write(package / "b" / "other.py", "other = 1\n")
    write(unrun.source("b/page"), "# Page\n")
    with unrun.source("a/one").open("a") as file:
        file.write("\n```{code-cell} ipython3\nresults('A-F1')\n```\n")
    for name in ("A-F1", "A-F2"):
        write(unrun.pages / "results" / f"{name}.json", '{"cells": 1}\n')
    write(unrun.root / "requirements.txt", "numpy==1.0\n# a comment\nyaml-nowhere==2\n")
    return unrun


def in_file(name: str, old: str, new: str) -> Callable[[Book], None]:
    return lambda book: change(book.root / name, old, new)


MATTERS = {
    "code of a cell": in_file("book/a/one.md", "risk(2.0)", "risk(3.0)"),
    "one more cell": in_file(
        "book/a/one.md", "The risk of two.", "```{code-cell} ipython3\n1\n```"
    ),
    "own wing": in_file("iclbook/a/own.py", "1", "2"),
    "nested file of the own wing": in_file("iclbook/a/deep/nested.py", "1", "2"),
    "shared room": in_file("iclbook/shared.py", "2 * x", "3 * x"),
    "text that is printed": in_file("iclbook/shared.py", "2 * x", "'2 * x'"),
    "data": in_file("iclbook/table.csv", "1,2", "1,3"),
    "results that a cell names": in_file("book/results/A-F1.json", "1", "2"),
    "results that go": lambda book: (book.pages / "results" / "A-F1.json").unlink(),
    "new file": lambda book: write(book.root / "iclbook" / "new.py", "1"),
    "bound of a claim": in_file("iclbook/claims.yml", "low: 0.9", "low: 0.8"),
    "rule of a claim": in_file("iclbook/claims.yml", "rule: mean", "rule: every"),
    "basis, which is printed": in_file("iclbook/claims.yml", "basis: derived", "basis: chosen"),
    "verdict that is expected": in_file("iclbook/claims.yml", "expect: holds", "expect: no"),
    "name of a part": in_file("iclbook/claims.yml", "name: p", "name: r"),
    "seeds": in_file("iclbook/claims.yml", "seeds: 8", "seeds: 9"),
    "part of the control": in_file("iclbook/claims.yml", "else., part: p", "else., part: q"),
    "id of a claim": in_file("iclbook/claims.yml", "id: A-F1", "id: A-F3"),
    "a field that is not known to be prose": in_file("iclbook/claims.yml", "seeds: 8", "new: 8"),
}
MATTERS_NOT = {
    "prose": in_file("book/a/one.md", "The risk of two", "The risk of 2"),
    "options of a cell": in_file("book/a/one.md", "[hide-input]", "[hide-cell]"),
    "line ends of a chapter": in_file("book/a/one.md", "\n", "\r\n"),
    "line ends of code": in_file("iclbook/shared.py", "\n", "\r\n"),
    "line ends of data": in_file("iclbook/table.csv", "\n", "\r\n"),
    "line ends of the ledger": in_file("iclbook/claims.yml", "\n", "\r\n"),
    "comment": in_file("iclbook/shared.py", "# comment", "# other"),
    "blank line": in_file("iclbook/shared.py", "    # comment\n", "\n    # comment\n"),
    "docstring of a module": in_file("iclbook/shared.py", '"""Module."""', '"""Mended."""'),
    "docstring of a class": in_file("iclbook/shared.py", '"""Class."""', '"""Mended."""'),
    "docstring of an attribute": in_file("iclbook/shared.py", '"""Attribute."""', '""" """'),
    "docstring that goes": in_file("iclbook/shared.py", '    """Function."""\n', ""),
    "results that no cell names": in_file("book/results/A-F2.json", "1", "2"),
    "line ends of results": in_file("book/results/A-F1.json", "\n", "\r\n"),
    "the other wing": in_file("iclbook/b/other.py", "1", "2"),
    "row of another chapter": in_file("iclbook/claims.yml", "low: 1}", "low: 2}"),
    "what a row says": in_file("iclbook/claims.yml", "says: Something.", "says: Anything."),
    "where it stands": in_file("iclbook/claims.yml", "Figure 1", "Fig. 1"),
    "its regime": in_file("iclbook/claims.yml", "d = 5", "d = 6"),
    "its anchor": in_file("iclbook/claims.yml", "anchor: here", "anchor: there"),
    "what it rests on": in_file("iclbook/claims.yml", "uses: [A-F2]", "uses: []"),
    "words of the control": in_file("iclbook/claims.yml", "Something else", "Anything else"),
    "words of a part": in_file("iclbook/claims.yml", "By sight", "By hand"),
    "bytecode": lambda book: write(book.root / "iclbook" / "__pycache__" / "x.pyc", "1"),
    "grid of an experiment": lambda book: write(book.root / "iclbook/a/experiments.py", "1"),
    "command line": lambda book: write(book.root / "iclbook" / "__main__.py", "1"),
    "hidden file": lambda book: write(book.root / "iclbook" / ".x.swp", "1"),
    "comment in the requirements": in_file("requirements.txt", "# a comment", "# none"),
}


@pytest.mark.parametrize("name", MATTERS)
def test_what_makes_a_run_stale(small: Book, name: str) -> None:
    before = small.key("a/one")
    MATTERS[name](small)
    assert small.key("a/one") != before


@pytest.mark.parametrize("name", MATTERS_NOT)
def test_what_leaves_a_run_as_it_is(small: Book, name: str) -> None:
    before = small.key("a/one")
    MATTERS_NOT[name](small)
    assert small.key("a/one") == before


@pytest.mark.parametrize(
    "line", ["import iclbook.b.other", "from iclbook import b", "from iclbook.b import x", "%magic"]
)
def test_a_wing_that_a_cell_imports_matters(small: Book, line: str) -> None:
    change(small.source("a/one"), "from iclbook.risk import risk", line)
    before = small.key("a/one")
    change(small.root / "iclbook/b/other.py", "1", "2")
    assert small.key("a/one") != before


def test_a_chapter_outside_the_wings_may_use_all(small: Book) -> None:
    write(small.source("both"), small.source("a/one").read_text("utf8"))
    for wing in ("a/own.py", "b/other.py"):
        before = small.key("both")
        change(small.root / "iclbook" / wing, "1", "2")
        assert small.key("both") != before


def test_installed_versions_matter(small: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "numpy":
            return "2.0"
        raise metadata.PackageNotFoundError

    before = small.key("a/one")
    monkeypatch.setattr(metadata, "version", version)
    stale.installed.cache_clear()
    try:
        assert stale.versions(small.root / "requirements.txt") == {"numpy": "2.0"}
        assert small.key("a/one") != before
    finally:
        stale.installed.cache_clear()


def test_python_matters(small: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small.key("a/one")
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert small.key("a/one") != before


def test_a_ledger_that_cannot_be_read_is_left_to_the_check(small: Book) -> None:
    for text in ("- {", "words", "- words\n- {chapter: a/one, parts: 3}"):
        write(small.ledger, text)
        assert small.key("a/one")


# Stored runs


def test_a_good_run_counts(book: Book) -> None:
    run = book.stored_run("a/one")
    assert run is not None
    assert [cell.execution_count for cell in run.cells] == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"null",
        b"[1]",
        b"\xff\xfe\x00",
        b'{"metadata": null}',
        b'{"metadata": {"iclbook": 3}}',
        nbformat.writes(nbformat.v4.new_notebook()).encode(),
    ],
)
def test_a_damaged_or_foreign_run_is_stale(book: Book, content: bytes) -> None:
    book.run("a/one").write_bytes(content)
    assert book.stored_run("a/one") is None


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_half_a_run_is_stale(book: Book, share: float) -> None:
    content = book.run("a/one").read_bytes()
    book.run("a/one").write_bytes(content[: int(share * len(content))])
    assert book.stored_run("a/one") is None


@pytest.mark.parametrize("place", ["cells", "nbformat", "source", "outputs", "execution_count"])
def test_a_run_that_lost_something_is_stale(book: Book, place: str) -> None:
    nb = json.loads(book.run("a/one").read_text("utf8"))
    (nb if place in nb else nb["cells"][0]).pop(place)
    write(book.run("a/one"), json.dumps(nb))
    assert book.stored_run("a/one") is None


@pytest.mark.parametrize("name", ["key", "seconds", "cpu_seconds", "peak_mib", "when"])
def test_a_run_that_does_not_say_what_it_took_is_stale(book: Book, name: str) -> None:
    nb = json.loads(book.run("a/one").read_text("utf8"))
    nb["metadata"]["iclbook"].pop(name)
    write(book.run("a/one"), json.dumps(nb))
    assert book.stored_run("a/one") is None


def test_a_folder_in_place_of_a_run_is_stale(book: Book) -> None:
    path: Path = book.run("a/one")
    path.unlink()
    path.mkdir()
    assert book.stored_run("a/one") is None
