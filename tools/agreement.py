"""Whether pages, contents, references and the ledger of claims agree."""

import re
from collections.abc import Iterator

import jupytext
import yaml

from iclbook import claims
from tools import ledger
from tools.book import (
    Book,
    code_cells,
    header,
    is_chapter,
    name_cell,
    read_chapter,
    read_notebook,
)
from tools.layout import layout_problems

# A cell with one of these is executed or compared by halves.
FORBIDDEN_TAGS = {"raises-exception", "skip-execution", "nbval-skip", "nbval-ignore-output"}


def check(book: Book) -> list[str]:
    """All that is wrong between pages, contents, references and ledger, one message each."""
    listed, chapters = book.listed(), book.chapters()
    problems = [f"{page}: not in _toc.yml" for page in book.page_ids() if page not in listed]
    problems += [
        f"{page}: in _toc.yml, but book/{page}.md does not exist"
        for page in sorted(listed - set(book.page_ids()))
    ]
    sound = []
    for chapter in chapters:
        text = book.source(chapter).read_text("utf8")
        found = list(source_problems(text))
        if not found:
            sound.append(chapter)
            found = list(reference_problems(book, chapter, text))
        problems += [f"{chapter}: {problem}" for problem in found]
    problems += layout_problems(book, sound)
    for path in sorted(book.references.rglob("*.ipynb")):
        chapter = path.relative_to(book.references).with_suffix("").as_posix()
        if chapter not in chapters:
            problems.append(f"{chapter}: tests/reference/{chapter}.ipynb has no chapter")
    return problems + ledger_problems(book, chapters)


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
    reference = read_notebook(book.reference(chapter))
    if reference is None:
        yield f"its reference is no notebook; {hint}"
        return
    ours = [cell.source for cell in code_cells(read_chapter(text))]
    theirs = code_cells(reference)
    for number, (source, cell) in enumerate(zip(ours, theirs, strict=False)):
        if source != cell.source:
            there = name_cell(number, cell.source)
            yield f"{name_cell(number, source)} differs from its reference, {there}; {hint}"
            return
        if cell.execution_count is None:
            yield f"{name_cell(number, source)} was never executed in the reference; {hint}"
    if len(ours) != len(theirs):
        yield f"{len(ours)} code cells, but {len(theirs)} in the reference; {hint}"


def ledger_problems(book: Book, chapters: list[str]) -> list[str]:
    """Where the ledger does not fit itself, the pages, or what the references have on record."""
    if not book.ledger.exists():
        return []
    try:
        rows = claims.load(book.ledger)
    except (ValueError, yaml.YAMLError) as error:
        return [str(error)]
    pages = {chapter: book.source(chapter).read_text("utf8") for chapter in chapters}
    problems = ledger.inconsistencies(rows) + ledger.disagreements(rows, pages)
    references = {chapter: read_notebook(book.reference(chapter)) for chapter in chapters}
    sound = {chapter: nb for chapter, nb in references.items() if nb is not None}
    return problems + ledger.unchecked(rows, sound)
