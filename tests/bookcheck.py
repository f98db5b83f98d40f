"""A book on disk: its chapters, contents and references, and whether they agree.

A chapter is a page under book/ with code; its id is its path there, `linear/prompts`. Cells are
numbered as nbval numbers them: code cells only, from 0.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

# A cell with one of these is executed or compared by halves.
FORBIDDEN_TAGS = {"raises-exception", "skip-execution", "nbval-skip", "nbval-ignore-output"}


class BookError(Exception):
    """What a reader or author did wrong, in words for them."""


@dataclass(frozen=True)
class Book:
    """A book's folders. `root` holds _config.yml, _toc.yml, book/, iclbook/ and tests/."""

    root: Path

    @property
    def pages(self) -> Path:
        return self.root / "book"

    @property
    def references(self) -> Path:
        return self.root / "tests" / "reference"

    @property
    def html(self) -> Path:
        return self.root / "_build" / "html"

    def config(self) -> dict:
        return yaml.safe_load((self.root / "_config.yml").read_text("utf8"))

    def source(self, chapter: str) -> Path:
        return self.pages / f"{chapter}.md"

    def reference(self, chapter: str) -> Path:
        return self.references / f"{chapter}.ipynb"

    def run(self, chapter: str) -> Path:
        return self.root / "_build" / "runs" / f"{chapter}.ipynb"

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

    def key(self, chapter: str) -> str:
        """Hash of everything that a chapter's outputs depend on."""
        files = [
            self.source(chapter),
            *sorted((self.root / "iclbook").rglob("*.py")),
            self.pages / "claims.yml",
            self.root / "requirements.txt",
        ]
        digest = hashlib.sha256()
        for path in filter(Path.exists, files):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(self.root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def stored_run(self, chapter: str) -> NotebookNode | None:
        """The chapter's executed notebook, or None if there is none of today's key."""
        if not self.run(chapter).exists():
            return None
        nb = nbformat.read(self.run(chapter), as_version=4)
        return nb if nb.metadata["iclbook"]["key"] == self.key(chapter) else None


# Reading chapters


def header(text: str) -> dict:
    """The YAML at the head of a page; empty if there is none."""
    found = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    return (yaml.safe_load(found[1]) or {}) if found else {}


def is_chapter(text: str) -> bool:
    has_cell = re.search(r"^[`:]{3,} *\{code-cell\}", text, re.MULTILINE)
    return has_cell is not None or "jupytext" in header(text)


def read_chapter(text: str) -> NotebookNode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what jupytext warns of here, the round trip reports
        return jupytext.reads(text, fmt="md:myst")


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def name_cell(number: int, source: str) -> str:
    """`Cell 3 (risk = lsa_risk(task, v, W))`: nbval's number and the first line."""
    return f"Cell {number} ({(source.strip().splitlines() or ['empty'])[0]})"


# Checking


def check(book: Book) -> list[str]:
    """All that is wrong between chapters, contents and references, one message each."""
    listed, chapters = book.listed(), book.chapters()
    problems = [f"{page}: not in _toc.yml" for page in book.page_ids() if page not in listed]
    problems += [
        f"{page}: in _toc.yml, but book/{page}.md does not exist"
        for page in sorted(listed - set(book.page_ids()))
    ]
    for chapter in chapters:
        text = book.source(chapter).read_text("utf8")
        found = list(source_problems(text)) or list(reference_problems(book, chapter, text))
        problems += [f"{chapter}: {problem}" for problem in found]
    for path in sorted(book.references.rglob("*.ipynb")):
        chapter = path.relative_to(book.references).with_suffix("").as_posix()
        if chapter not in chapters:
            problems.append(f"{chapter}: tests/reference/{chapter}.ipynb has no chapter")
    return problems


def source_problems(text: str) -> Iterator[str]:
    """What is wrong with a chapter's text by itself."""
    form = header(text).get("jupytext", {}).get("text_representation", {}).get("format_name")
    if form != "myst":
        yield f"format_name is {form}, not myst: its code would be shown and never executed"
        return
    nb = read_chapter(text)
    through_ipynb = jupytext.reads(jupytext.writes(nb, fmt="ipynb"), fmt="ipynb")
    back = jupytext.writes(through_ipynb, fmt="md:myst")
    if back != text:
        ends = ["(end)"]
        pairs = zip(text.splitlines() + ends, back.splitlines() + ends, strict=False)
        changed = ((n, a, b) for n, (a, b) in enumerate(pairs, 1) if a != b)
        number, line, other = next(changed, (1, "line ends", "other line ends"))
        yield f"does not survive jupytext: line {number}, {line!r}, comes back as {other!r}"
    for cell in nb.cells:
        if cell.cell_type == "markdown" and is_chapter(cell.source):
            line = cell.source.splitlines()[0]
            yield f"a code cell inside another directive is never executed, in the text at {line!r}"
    for number, cell in enumerate(code_cells(nb)):
        for tag in FORBIDDEN_TAGS.intersection(cell.metadata.get("tags", [])):
            yield f"{name_cell(number, cell.source)} has the tag {tag}, so nbval would not check it"
        if re.search(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE_)", cell.source, re.MULTILINE):
            yield f"{name_cell(number, cell.source)} has an nbval comment, so it would go unchecked"


def reference_problems(book: Book, chapter: str, text: str) -> Iterator[str]:
    """Where a chapter and its reference differ, or the reference was not executed."""
    hint = f"run `make refs CHAPTER={chapter}`"
    if not book.reference(chapter).exists():
        yield f"no reference, tests/reference/{chapter}.ipynb; {hint}"
        return
    ours = [cell.source for cell in code_cells(read_chapter(text))]
    theirs = code_cells(nbformat.read(book.reference(chapter), as_version=4))
    for number, (source, cell) in enumerate(zip(ours, theirs, strict=False)):
        if source != cell.source:
            there = name_cell(number, cell.source)
            yield f"{name_cell(number, source)} differs from its reference, {there}; {hint}"
            return
        if cell.execution_count is None:
            yield f"{name_cell(number, source)} was never executed in the reference; {hint}"
    if len(ours) != len(theirs):
        yield f"{len(ours)} code cells, but {len(theirs)} in the reference; {hint}"
