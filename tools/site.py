"""The site, built from the stored runs.

It is built aside, in `_build/next`, and takes the old one's place only if all went well. What
Sphinx read is kept there for the next build, which reads again only the pages whose text or outputs
changed; all pages are written anew each time, so no link or number of another page gets old.
Whatever else changed, or any failure, makes the next build start afresh.
"""

import contextlib
import functools
import gc
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_book.sphinx import build_sphinx
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from myst_nb.core.read import read_myst_markdown_notebook
from nbformat import NotebookNode
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.console import nocolor

from iclbook import claims
from tools import ledger, stale
from tools.book import Book, BookError, code_cells
from tools.engine import HOME
from tools.publish import publish
from tools.store import demand_space, write_whole


def build_site(book: Book, *, fresh: bool) -> str:
    """Build the site from the stored runs and return its address.

    Args:
        book: The book.
        fresh: Whether to read every page anew, also those that have not changed.

    Raises:
        BookError: If a run is stale, if Sphinx warns, or if it had to execute anything itself.
    """
    repair(book)
    demand_space(book)
    work = book.build / "next"
    runs = {chapter: run_of(book, chapter) for chapter in book.chapters()}
    today = inputs(book, runs)
    if not fresh and today == inputs_before(work) and (book.html / "index.html").exists():
        print("the site is as its sources are")
        return address(book)
    with nothing_left_of(work):
        changed = start(book, work, today, fresh=fresh)
        cache = get_cache(work / ".jupyter_cache")  # where MyST-NB looks
        for chapter in changed & runs.keys():
            fill_cache(book, chapter, executed(book, chapter, runs[chapter]), cache)
        succeeded = run_sphinx(book, work)
        ran = sorted(record.uri for record in cache.list_project_records())
        if ran:
            raise BookError(f"Sphinx executed {', '.join(ran)} itself instead of using the run")
        if not succeeded:
            demand_space(book)
            raise BookError(f"the site has errors or warnings (above); {book.html} is as it was")
        html = work / "html"
        publish(book, html)
        write_whole(work / "inputs.json", json.dumps(today))
        replace(book, html)
    return address(book)


def address(book: Book) -> str:
    """Where a browser finds the site."""
    return (book.html / "index.html").resolve().as_uri()


@contextlib.contextmanager
def nothing_left_of(work: Path) -> Iterator[None]:
    """Remove a working folder if what is done with it fails."""
    try:
        yield
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def repair(book: Book) -> None:
    """Bring back the site that a build which was killed between its last two steps put aside."""
    old = book.build / "old"
    if old.exists() and not book.html.exists():
        old.rename(book.html)
    shutil.rmtree(old, ignore_errors=True)


def replace(book: Book, html: Path) -> None:
    """Put a new site in the place of the old one."""
    if book.html.exists():
        book.html.rename(book.build / "old")
    html.rename(book.html)
    shutil.rmtree(book.build / "old", ignore_errors=True)


# What is read again


def inputs(book: Book, runs: dict[str, NotebookNode]) -> dict[str, Any]:
    """Hashes of all that the site is made from: of each page, and of everything else."""
    took = {chapter: run.metadata["iclbook"] for chapter, run in runs.items()}
    pages = {}
    for page in book.page_ids():
        run = runs.get(page)
        outputs = [cell.outputs for cell in code_cells(run)] if run else []
        text = book.source(page).read_text("utf8") + json.dumps(outputs, sort_keys=True)
        pages[page] = stale.digest(text)
    known = {book.source(page) for page in pages}
    files = [book.root / name for name in ("_config.yml", "_toc.yml", "pyproject.toml")]
    for folder in (book.pages, book.root / "iclbook", HOME / "tools"):
        files += sorted(folder.rglob("*"))
    rest = hashlib.sha256(json.dumps(stale.versions(book.root / "requirements.txt")).encode())
    for path in files:
        if path not in known and path.is_file() and "__pycache__" not in path.parts:
            rest.update(f"{path} {path.stat().st_size}\n".encode())
            rest.update(path.read_bytes())
    return {"pages": pages, "runs": took, "rest": rest.hexdigest(), "python": sys.version}


def inputs_before(work: Path) -> dict[str, Any]:
    """What the last build was made from; empty if there was none, or if it did not end well."""
    try:
        before: dict[str, Any] = json.loads((work / "inputs.json").read_text("utf8"))
    except (OSError, ValueError):
        return {}
    return before


def start(book: Book, work: Path, today: dict[str, Any], *, fresh: bool) -> set[str]:
    """Leave in the working folder what would be made today as it was last time.

    Returns:
        The pages that Sphinx has to read.
    """
    before = inputs_before(work)
    if fresh or any(before.get(name) != today[name] for name in ("rest", "python")):
        shutil.rmtree(work, ignore_errors=True)
        return set(today["pages"])
    (work / "inputs.json").unlink()
    for name in ("html", ".jupyter_cache"):
        shutil.rmtree(work / name, ignore_errors=True)
    for wheel in (book.html / "notebooks").glob("*.whl"):  # the package has not changed either
        (work / "html" / "notebooks").mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, work / "html" / "notebooks")
    changed = {page for page, text in today["pages"].items() if before["pages"].get(page) != text}
    for page in changed:
        # By itself Sphinx looks at the time of a page only, and at no output.
        (work / ".doctrees" / "book" / f"{page}.doctree").unlink(missing_ok=True)
    return changed


# Sphinx


def run_sphinx(book: Book, work: Path) -> bool:
    """Build strictly into `work`, as `jupyter-book build -W -n --keep-going`; True if all was well.

    In this process, which has imported half of it already.
    """
    StandaloneHTMLBuilder.epilog = ""  # it praises the folder that is about to be renamed
    if not sys.stdout.isatty():
        nocolor()
    settings = {
        "external_toc_path": str(book.root / "_toc.yml"),
        "latex_individualpages": False,
        "nitpicky": True,
    }
    gc.disable()  # all that Sphinx makes lives to its end: looking for garbage costs a tenth
    try:
        result = build_sphinx(
            book.root,
            work / "html",
            path_config=str(book.root / "_config.yml"),
            noconfig=True,
            confoverrides=settings,
            warningiserror=True,
            keep_going=True,
        )
    finally:
        gc.enable()
    if isinstance(result, OSError | KeyboardInterrupt):
        raise result
    return bool(result == 0)


def run_of(book: Book, chapter: str) -> NotebookNode:
    """The stored run of a chapter, its checks as chips.

    Raises:
        BookError: If there is no run of today's key.
    """
    run = book.stored_run(chapter)
    if run is None:
        raise BookError(f"{chapter}: no run of today's sources is stored; run `make book`")
    if book.ledger.exists():
        rows = rows_of(book.ledger, book.ledger.stat().st_mtime_ns)
        for cell in code_cells(run):
            ledger.decorate(cell.outputs, rows)
    return run


def executed(book: Book, chapter: str, run: NotebookNode) -> NotebookNode:
    """The chapter as Sphinx reads it, with the outputs of a run."""
    nb: NotebookNode = read_myst_markdown_notebook(book.source(chapter).read_text("utf8"))
    for cell, ran in zip(code_cells(nb), code_cells(run), strict=True):
        cell.update(outputs=ran.outputs, execution_count=ran.execution_count)
    nb.metadata["iclbook"] = run.metadata["iclbook"]
    return nb


@functools.cache
def rows_of(path: Path, _written: int) -> dict[str, claims.Claim]:
    """Rows of a ledger by their ids, read once for each time that it was written."""
    return {row.id: row for row in claims.load(path)}


def fill_cache(book: Book, chapter: str, nb: NotebookNode, cache: JupyterCacheAbstract) -> None:
    """Give Sphinx's cache an executed chapter."""
    took = {"execution_seconds": nb.metadata["iclbook"]["seconds"]}
    source = str(book.source(chapter))
    cache.cache_notebook_bundle(
        CacheBundleIn(nb, source, data=took), check_validity=False, overwrite=True
    )
