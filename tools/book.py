"""What a book is on disk: its pages, contents, references and stored runs.

A chapter is a page under book/ with code; its id is its path there, `linear/prompts`. Cells are
numbered as nbval numbers them: code cells only, from 0.
"""

import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

from tools import stale

# What a stored run says of itself, besides its key.
TOOK = {"seconds", "cpu_seconds", "peak_mib", "python", "platform", "cpus", "when"}


class BookError(Exception):
    """What a reader or author did wrong, in words for them."""


@dataclass(frozen=True)
class Book:
    """A book's folders. `root` holds _config.yml, _toc.yml, book/, iclbook/ and tests/."""

    root: Path

    @property
    def pages(self) -> Path:
        """Folder of the pages."""
        return self.root / "book"

    @property
    def references(self) -> Path:
        """Folder of the committed references."""
        return self.root / "tests" / "reference"

    @property
    def ledger(self) -> Path:
        """The ledger of claims."""
        return self.root / "iclbook" / stale.LEDGER

    @property
    def build(self) -> Path:
        """Folder of all that is made and not committed."""
        return self.root / "_build"

    @property
    def html(self) -> Path:
        """Folder of the built site."""
        return self.build / "html"

    def config(self) -> dict[str, Any]:
        """What _config.yml says."""
        config: dict[str, Any] = yaml.safe_load((self.root / "_config.yml").read_text("utf8"))
        return config

    def source(self, chapter: str) -> Path:
        """A page."""
        return self.pages / f"{chapter}.md"

    def reference(self, chapter: str) -> Path:
        """A chapter's reference."""
        return self.references / f"{chapter}.ipynb"

    def run(self, chapter: str) -> Path:
        """A chapter's stored run."""
        return self.build / "runs" / f"{chapter}.ipynb"

    def page_ids(self) -> list[str]:
        """Ids of all pages, with and without code, sorted. Results are included by pages."""
        files = (path.relative_to(self.pages) for path in self.pages.rglob("*.md"))
        return sorted(
            path.with_suffix("").as_posix()
            for path in files
            if not any(part.startswith(("_", ".")) for part in path.parts)
            and path.parts[0] != "results"
        )

    def chapters(self) -> list[str]:
        """Ids of the pages with code, sorted."""
        return [page for page in self.page_ids() if is_chapter(self.source(page).read_text("utf8"))]

    def listed(self) -> set[str]:
        """Ids of the pages that _toc.yml lists."""

        def files(node: object) -> Iterator[str]:
            if isinstance(node, dict):
                yield from (node[key] for key in ("root", "file") if key in node)
                node = list(node.values())
            if isinstance(node, list):
                for child in node:
                    yield from files(child)

        toc = yaml.safe_load((self.root / "_toc.yml").read_text("utf8"))
        return {file.removeprefix("book/").removesuffix(".md") for file in files(toc)}

    def cells(self, chapter: str) -> list[str]:
        """Sources of a chapter's code cells."""
        return list(sources(self.source(chapter).read_text("utf8")))

    def key(self, chapter: str) -> str:
        """Hash of everything that a chapter's outputs depend on."""
        return stale.key(self.root, chapter, self.cells(chapter))

    def stored_run(self, chapter: str) -> NotebookNode | None:
        """The chapter's executed code cells, or None without a sound run of today's key."""
        nb = read_notebook(self.run(chapter))
        took = nb.metadata.get("iclbook") if nb else None
        if nb is None or not isinstance(took, dict) or not took.keys() >= TOOK:
            return None
        ran = [cell.source for cell in code_cells(nb) if cell.execution_count is not None]
        return nb if took.get("key") == self.key(chapter) and ran == self.cells(chapter) else None


def read_notebook(path: Path) -> NotebookNode | None:
    """A notebook; None if there is none, or if it is damaged."""
    try:
        nb: NotebookNode = nbformat.read(path, as_version=4)
        nbformat.validate(nb)  # reading only logs what is wrong
    except (OSError, ValueError, LookupError, TypeError, AttributeError, nbformat.ValidationError):
        return None
    return nb


def header(text: str) -> dict[str, Any]:
    """The YAML at the head of a page; empty if there is none."""
    found = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    return (yaml.safe_load(found[1]) or {}) if found else {}


def is_chapter(text: str) -> bool:
    """Whether a page has code."""
    has_cell = re.search(r"^[`:]{3,} *\{code-cell\}", text, re.MULTILINE)
    return has_cell is not None or "jupytext" in header(text)


def read_chapter(text: str) -> NotebookNode:
    """A chapter as a notebook that was not executed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what jupytext warns of here, the round trip reports
        nb: NotebookNode = jupytext.reads(text, fmt="md:myst")
        return nb


@functools.cache
def sources(text: str) -> tuple[str, ...]:
    """Sources of the code cells of a chapter."""
    return tuple(cell.source for cell in code_cells(read_chapter(text)))


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def name_cell(number: int, source: str) -> str:
    """`Cell 3 (risk = lsa_risk(task, v, W))`: nbval's number and the first line."""
    return f"Cell {number} ({(source.strip().splitlines() or ['empty'])[0]})"
