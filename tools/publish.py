"""The chapters as notebooks for readers: `notebooks/<wing>/<chapter>.ipynb` beside the site.

A reader's notebook needs nothing of the book: its prose is plain Markdown, with the numbers that
the site shows, and its first cell installs the package from the wheel that lies beside. A second
one, `<chapter>-exercises.ipynb`, has neither outputs nor solutions, for teaching.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode, v4

from tools.book import Book, BookError, code_cells, read_chapter
from tools.prose import Page, Site, markdown, read_site
from tools.store import GLUED, write_whole

SOLUTION = re.compile(r"^([`:]{3,}) *\{solution-(start|end)\}.*\n(?:.*\n)*?\1 *$", re.MULTILINE)
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def publish(book: Book, html: Path) -> None:
    """Write the notebooks of all chapters, and the wheel of the package, beside a built site.

    Args:
        book: The book; a chapter's outputs are those of its stored run.
        html: Folder of the site, from which the numbers of theorems and equations are taken.

    Raises:
        BookError: If a chapter has no stored run, or names what the book does not have.
    """
    site = read_site(book, html)
    folder = html / "notebooks"
    wheel = wheel_name(book.root)
    if wheel and not (folder / wheel).exists():  # the site keeps one that is as it would be built
        build_wheel(book.root, folder)
    for chapter in book.chapters():
        run = book.stored_run(chapter)
        if run is None:
            raise BookError(f"{chapter}: no run of today's sources is stored; run `make book`")
        source = read_chapter(book.source(chapter).read_text("utf8"))
        for solved in (True, False):
            path = folder / (f"{chapter}.ipynb" if solved else f"{chapter}-exercises.ipynb")
            nb = notebook(site, chapter, source, run, solved=solved)
            nb.cells[:0] = install_cells(site, chapter, wheel) if wheel else []
            for number, cell in enumerate(nb.cells):
                cell.id = f"cell-{number}"
            write_whole(path, nbformat.writes(nb) + "\n")


# The package


def wheel_name(root: Path) -> str:
    """Name of the wheel of the package; empty if there is no package."""
    described = root / "pyproject.toml"
    if not described.exists():
        return ""
    project = tomllib.loads(described.read_text("utf8"))["project"]
    return f"{project['name']}-{project['version']}-py3-none-any.whl"


def build_wheel(root: Path, folder: Path) -> None:
    """Build the wheel of the package into a folder, from a copy, without any network.

    Raises:
        BookError: If pip fails.
    """
    with tempfile.TemporaryDirectory() as copy:
        bare = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "iclbook", Path(copy, "iclbook"), ignore=bare)
        found = Path(copy, "iclbook", "results")  # where the package looks for them without a book
        found.mkdir()
        for path in sorted((root / "book" / "results").glob("*.json")):
            shutil.copy(path, found)
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(root / name, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        command += ["--no-index", "--quiet", "--wheel-dir", str(folder), copy]
        same = os.environ | {"SOURCE_DATE_EPOCH": "315532800"}  # the same bytes at any time
        ran = subprocess.run(  # noqa: S603 (pip)
            command, env=same, capture_output=True, text=True, check=False
        )
    if ran.returncode:
        raise BookError(f"the package cannot be built: {ran.stderr.strip()}")


def install_cells(site: Site, chapter: str, wheel: str) -> list[NotebookNode]:
    """What a reader sees first: where this comes from, and what installs the package."""
    up = "../" * chapter.count("/")
    words = (
        f"*This notebook is the chapter “{site.titles[chapter]}” of the book "
        f"“{site.book.config().get('title', '')}”.* "
        f"To run it, download [{wheel}]({up}{wheel}) too, from the download menu of the chapter's "
        "page, and put it into the same folder. The next cell installs it, with what it needs."
    )
    code = f"""\
from importlib.util import find_spec
from pathlib import Path

name = "{wheel}"
wheels = [path for path in (Path(name), Path("..", name)) if path.exists()]
if find_spec("iclbook") is None and not wheels:
    raise FileNotFoundError(f"put {{name}} beside this notebook (the chapter's page offers it)")
if find_spec("iclbook") is None:
    # On Linux without a GPU, the environment variable PIP_EXTRA_INDEX_URL, set to
    # https://download.pytorch.org/whl/cpu, saves gigabytes.
    %pip install --quiet "{{wheels[0]}}[book]\""""
    return [v4.new_markdown_cell(words), v4.new_code_cell(code)]


# Notebooks


def notebook(
    site: Site, chapter: str, source: NotebookNode, run: NotebookNode, *, solved: bool
) -> NotebookNode:
    """A chapter as a notebook, with outputs and solutions or with neither.

    Args:
        site: What the chapter refers to.
        chapter: Its id.
        source: The chapter as it stands, not executed.
        run: The chapter executed, maybe before its prose was last changed.
        solved: Whether to give outputs and solutions.

    Raises:
        BookError: If the chapter names what the book does not have.
    """
    cited = "".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    page, ran = Page(site, chapter, cited, glued_by(run), solved), iter(code_cells(run))
    cells: list[NotebookNode] = []
    in_solution = False
    for cell in source.cells:
        if cell.cell_type == "code":
            executed = next(ran)
            if solved or not in_solution:
                cells.append(code_cell(cell, executed if solved else None))
            continue
        for piece in pieces(cell.source):
            found = SOLUTION.match(piece)
            in_solution = found[2] == "start" if found else in_solution
            if solved or (not in_solution and not found):
                prose = markdown(page, piece)
                cells += [v4.new_markdown_cell(prose)] if prose else []
            elif found and in_solution:
                cells += [v4.new_markdown_cell("*Your solution:*"), v4.new_code_cell("")]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made: NotebookNode = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    return made


def pieces(text: str) -> Iterator[str]:
    """Markdown, cut before and after the marks of a solution."""
    end = 0
    for mark in SOLUTION.finditer(text):
        yield text[end : mark.start()]
        yield mark[0]
        end = mark.end()
    yield text[end:]


def code_cell(cell: NotebookNode, ran: NotebookNode | None) -> NotebookNode:
    """A cell, folded where the page folds it; with the outputs of a run but for glued numbers."""
    made: NotebookNode = v4.new_code_cell(cell.source)
    if HIDDEN & set(cell.metadata.get("tags", [])):
        made.metadata["jupyter"] = {"source_hidden": True}
    if ran is not None:
        made.execution_count = ran.execution_count
        made.outputs = [output for output in ran.outputs if not glued_name(output)]
    return made


def glued_name(output: NotebookNode) -> str:
    """The name that an output is glued under, empty if it is not."""
    is_glued = any(mime.startswith(GLUED) for mime in output.get("data", {}))
    return str(output.metadata["scrapbook"]["name"]) if is_glued else ""


def glued_by(run: NotebookNode) -> dict[str, str]:
    """What a run glued, by name."""
    outputs = (output for cell in code_cells(run) for output in cell.outputs)
    return {
        glued_name(output): str(ast.literal_eval(output.data[f"{GLUED}text/plain"]))
        for output in outputs
        if glued_name(output)
    }
