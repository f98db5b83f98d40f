"""Every way in which pages, contents, references and ledger may disagree is made and found."""

import json
import shutil

import pytest
from small_book import CHAPTER, HEADER, change, write

from tools.agreement import check
from tools.book import Book

DISPLAY = "Cell 1 (from IPython.display import display)"


def problem(book: Book) -> str:
    """The one problem that check finds."""
    (found,) = check(book)
    return found


def test_a_good_book_has_no_problems(book: Book) -> None:
    assert check(book) == []


def test_changed_cell_differs_from_its_reference(book: Book) -> None:
    change(book.source("a/one"), "risk(2.0)", "risk(3.0)")
    assert problem(book).startswith(f"a/one: {DISPLAY} differs from its reference")
    assert "make refs CHAPTER=a/one" in problem(book)


def test_added_cell_differs_from_its_reference(book: Book) -> None:
    with book.source("a/one").open("a") as file:
        file.write("\n```{code-cell} ipython3\n3\n```\n")
    assert problem(book).startswith("a/one: 3 code cells, but 2 in the reference")


def test_changed_prose_needs_no_new_reference(book: Book) -> None:
    change(book.source("a/one"), "The risk of two", "The risk of 2")
    assert check(book) == []


def test_cell_never_executed(book: Book) -> None:
    change(book.reference("a/one"), '"execution_count": 2', '"execution_count": null')
    assert f"a/one: {DISPLAY} was never executed in the reference" in problem(book)


def test_output_metadata_may_be_absent(book: Book) -> None:
    nb = json.loads(book.reference("a/one").read_text("utf8"))
    for output in nb["cells"][1]["outputs"]:
        if "metadata" in output:
            output["metadata"] = {}
    write(book.reference("a/one"), json.dumps(nb))
    assert check(book) == []


def test_damaged_reference(book: Book) -> None:
    for text in ("", "{", "{}", "[]"):
        write(book.reference("a/one"), text)
        assert problem(book).startswith("a/one: its reference is no notebook; run `make refs")


def test_page_missing_from_contents(book: Book) -> None:
    write(book.pages / "plain.md", "# Plain\n")
    write(book.pages / "results" / "table.md", "A table, for a page to include.\n")
    assert problem(book) == "plain: not in _toc.yml"


def test_chapter_missing_from_contents(book: Book) -> None:
    change(book.root / "_toc.yml", "{file: book/a/one}", "")
    assert problem(book) == "a/one: not in _toc.yml"


def test_contents_without_page(book: Book) -> None:
    change(book.root / "_toc.yml", "{file: book/a/one}", "{file: book/a/one}, {file: book/two}")
    assert problem(book) == "two: in _toc.yml, but book/two.md does not exist"


def test_chapter_without_reference(book: Book) -> None:
    book.reference("a/one").unlink()
    assert problem(book).startswith("a/one: no reference, tests/reference/a/one.ipynb")


def test_reference_without_chapter(book: Book) -> None:
    shutil.copy(book.reference("a/one"), book.reference("a/gone"))
    assert problem(book) == "a/gone: tests/reference/a/gone.ipynb has no chapter"


def test_format_that_is_never_executed(book: Book) -> None:
    change(book.source("a/one"), "format_name: myst", "format_name: markdown")
    assert problem(book).startswith("a/one: format_name is markdown, not myst")


def test_code_without_header_is_never_executed(book: Book) -> None:
    change(book.source("a/one"), HEADER, "")
    assert problem(book).startswith("a/one: format_name is None, not myst")


def test_lossy_round_trip(book: Book) -> None:
    change(book.source("a/one"), "ipython3\nfrom iclbook", "python\nfrom iclbook")
    assert problem(book).startswith("a/one: does not survive jupytext: line 23, '```{code-cell} ip")


def test_cell_inside_a_directive_is_never_executed(book: Book) -> None:
    with book.source("a/one").open("a") as file:
        file.write("\n````{note}\n```{code-cell} ipython3\n3\n```\n````\n")
    assert "a/one: a code cell inside another directive is never executed" in problem(book)


@pytest.mark.parametrize("tag", ["raises-exception", "nbval-ignore-output"])
def test_tag_that_weakens_the_comparison(book: Book, tag: str) -> None:
    change(book.source("a/one"), "[hide-input]", f"[{tag}]")
    assert f"{DISPLAY} has the tag {tag}" in problem(book)


def test_comment_that_weakens_the_comparison(book: Book) -> None:
    change(book.source("a/one"), "from iclbook", "# NBVAL_IGNORE_OUTPUT\nfrom iclbook")
    assert "Cell 0 (# NBVAL_IGNORE_OUTPUT) has an nbval comment" in problem(book)


def test_the_ledger_must_fit_pages_and_references(book: Book) -> None:
    change(book.root / "iclbook/risk.py", "Risks", "The risks")
    write(book.ledger, "- {")
    assert "expected the node content" in problem(book)
    write(book.ledger, "- {id: A-F1}")
    assert problem(book).startswith("claims.yml, row A-F1")
    write(book.ledger, "- {id: A-F1, paper: A, where: F, says: S, chapter: not yet}")
    assert problem(book) == "a/one: A-F1, 'p' went 'holds': not in the ledger"


# The layout of cells


def test_a_cell_that_is_not_laid_out_is_named(book: Book) -> None:
    untidy = CHAPTER.replace("print(f", "print( f")
    write(book.source("a/one"), untidy)
    found = check(book)
    assert any(one.startswith(f"a/one: {DISPLAY} not laid out in 80 columns") for one in found)
    assert any("python -m tools format a/one" in one for one in found)
