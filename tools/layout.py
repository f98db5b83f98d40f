"""One layout for the code in chapters, ruff's, in lines that fit the page."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat

from tools.book import Book, BookError, code_cells, name_cell, read_chapter
from tools.store import write_whole

WIDTH = 80  # columns of a code cell


def laid_out(book: Book, chapters: list[str]) -> dict[str, list[str]]:
    """Sources of the code cells as ruff lays them out, by chapter.

    Raises:
        BookError: If a cell is not Python.
    """
    with tempfile.TemporaryDirectory() as folder:
        for chapter in chapters:
            cells = [nbformat.v4.new_code_cell(source) for source in book.cells(chapter)]
            nb = nbformat.v4.new_notebook(
                cells=cells, metadata={"language_info": {"name": "python"}}
            )
            write_whole(Path(folder, f"{chapter}.ipynb"), nbformat.writes(nb))
        ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache"]
        ruff += ["--line-length", str(WIDTH), "--target-version", "py311", folder]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise BookError(f"ruff cannot lay out every cell:\n{done.stderr.strip()}")
        return {
            chapter: [
                cell.source
                for cell in code_cells(
                    nbformat.read(Path(folder, f"{chapter}.ipynb"), as_version=4)
                )
            ]
            for chapter in chapters
        }


def layout_problems(book: Book, chapters: list[str]) -> list[str]:
    """A message for each chapter with a cell that is not laid out so."""
    try:
        wanted = laid_out(book, chapters)
    except BookError as error:
        return [str(error)]
    problems = []
    for chapter in chapters:
        pairs = zip(book.cells(chapter), wanted[chapter], strict=True)
        wrong = [name_cell(n, cell) for n, (cell, other) in enumerate(pairs) if cell != other]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            hint = f"run `python -m tools format {chapter}`"
            problems.append(f"{chapter}: {wrong[0]}{more} not laid out in {WIDTH} columns; {hint}")
    return problems


def lay_out(book: Book, chapters: list[str]) -> None:
    """Lay out the code cells of chapters, and say which changed.

    Raises:
        BookError: If a cell is not Python, or a chapter would not survive jupytext.
    """
    wanted = laid_out(book, chapters)
    for chapter in chapters:
        text = book.source(chapter).read_text("utf8")
        nb = read_chapter(text)
        if jupytext.writes(nb, fmt="md:myst") != text:
            raise BookError(
                f"{chapter}: does not survive jupytext; `python -m tools check` says where"
            )
        cells = code_cells(nb)
        if [cell.source for cell in cells] == wanted[chapter]:
            continue
        for cell, source in zip(cells, wanted[chapter], strict=True):
            cell.source = source
        write_whole(book.source(chapter), jupytext.writes(nb, fmt="md:myst"))
        print(f"laid out {chapter}")
