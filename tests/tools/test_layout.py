"""The layout of cells: ruff's, in 80 columns, with what notebooks may have besides Python."""

import pytest
from small_book import CHAPTER, change, write

from tools.book import Book, BookError
from tools.layout import laid_out, lay_out, layout_problems

LONG = "found = function(first_argument=1, second_argument=2, third_argument=3, more=4)"
CELL = "```{{code-cell}} ipython3\n{}\n```\n"


def add(book: Book, *cells: str) -> None:
    with book.source("a/one").open("a") as file:
        file.write("\n" + "\n".join(CELL.format(cell) for cell in cells))


def test_laid_out_cells_are_left_alone(unrun: Book) -> None:
    add(unrun, "# fmt: off\na  =  1\n# fmt: on", "a  =  1  # fmt: skip", "%timeit  a", "plot(1);")
    before = unrun.source("a/one").read_text("utf8")
    assert layout_problems(unrun, ["a/one"]) == []
    lay_out(unrun, ["a/one"])
    assert unrun.source("a/one").read_text("utf8") == before


@pytest.mark.parametrize("cell", ["a  =  1", "print('a')", f"{LONG}  # all", f"x = {LONG}"])
def test_other_cells_are_named_and_laid_out(unrun: Book, cell: str) -> None:
    add(unrun, "a = 1", cell)
    (problem,) = layout_problems(unrun, ["a/one"])
    assert problem.startswith(f"a/one: Cell 3 ({cell})")
    lay_out(unrun, ["a/one"])
    assert layout_problems(unrun, ["a/one"]) == []
    source = unrun.source("a/one").read_text("utf8")
    assert source.startswith(CHAPTER)
    assert max(map(len, unrun.cells("a/one")[3].splitlines())) <= 80


def test_what_is_no_python_is_a_problem_not_a_crash(unrun: Book) -> None:
    add(unrun, "a =")
    (problem,) = layout_problems(unrun, ["a/one"])
    assert "ruff cannot lay out every cell" in problem
    assert "one.ipynb" in problem


def test_a_page_that_jupytext_would_change_is_not_touched(unrun: Book) -> None:
    change(unrun.source("a/one"), "ipython3\nfrom iclbook", "python\nfrom iclbook")
    before = unrun.source("a/one").read_text("utf8")
    with pytest.raises(BookError, match="a/one: does not survive jupytext"):
        lay_out(unrun, ["a/one"])
    assert unrun.source("a/one").read_text("utf8") == before


def test_all_chapters_are_laid_out_at_once(unrun: Book) -> None:
    write(unrun.source("b"), CHAPTER.replace("risk(2.0)", "risk( 2.0 )"))
    assert set(laid_out(unrun, ["a/one", "b"])) == {"a/one", "b"}
    (problem,) = layout_problems(unrun, ["a/one", "b"])
    assert problem.startswith("b: Cell 1")
