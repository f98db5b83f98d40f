"""nbval's runs are kept: what it just executed is what the site shows.

While nbval runs a chapter's reference, the fresh outputs of its cells (images too) are collected;
after the last cell they go to the execution store, if every cell ran without an exception.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import nbformat
import pytest
from bookcheck import Book, code_cells, name_cell, read_chapter
from chapters import peak_mib, store_run
from nbval.plugin import IPyNbCell

RUNS = pytest.StashKey["Run"]()


@dataclass
class Run:
    """One chapter while nbval executes it."""

    chapter: str
    key: str
    start: float
    cells: list[IPyNbCell] = field(default_factory=list)
    peak: float = 0.0
    failed: bool = False


def book_of(item: pytest.Item) -> Book:
    return Book(item.config.rootpath)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Start the clock before a chapter's first cell, which starts its kernel."""
    if isinstance(item, IPyNbCell) and RUNS not in item.parent.stash:
        book = book_of(item)
        chapter = item.path.relative_to(book.references).with_suffix("").as_posix()
        item.parent.stash[RUNS] = Run(chapter, book.key(chapter), time.perf_counter())
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if not isinstance(item, IPyNbCell):
        return (yield)
    run = item.parent.stash[RUNS]
    run.cells.append(item)
    try:
        return (yield)
    finally:
        kernel = item.parent.kernel
        if kernel.is_alive():
            run.peak = peak_mib(kernel.km.provisioner.pid)
        raised = [out for out in item.test_outputs or [] if out.output_type == "error"]
        run.failed |= not kernel.is_alive() or item.parent.timed_out or bool(raised)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After a chapter's last cell: store the run."""
    last = nextitem is None or nextitem.parent is not item.parent
    if isinstance(item, IPyNbCell) and last:
        run = item.parent.stash[RUNS]
        seconds = time.perf_counter() - run.start
        nb = read_chapter(book_of(item).source(run.chapter).read_text("utf8"))
        cells = code_cells(nb)
        if not run.failed and [c.source for c in cells] == [i.cell.source for i in run.cells]:
            for number, (cell, executed) in enumerate(zip(cells, run.cells, strict=True), 1):
                cell.execution_count = number
                cell.outputs = nbformat.from_dict(executed.test_outputs)
            store_run(book_of(item), run.chapter, nb, run.key, seconds, run.peak)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Note chapter and cell on a failure's report, which also travels from xdist's workers."""
    report = yield
    if isinstance(item, IPyNbCell) and report.failed:
        chapter = item.parent.stash[RUNS].chapter
        cell = name_cell(item.cell_num, item.cell.source)
        report.user_properties.append(("cell", (chapter, cell, str(call.excinfo.value))))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each chapter's first failing cell; nbval goes on, and later ones may only follow."""
    failures: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        # A file that could not be read has a report too, without properties.
        for name, value in getattr(report, "user_properties", ()):
            if name == "cell":
                chapter, cell, reason = value
                failures.setdefault(chapter, []).append(f"{cell}: {reason}")
    if failures:
        terminalreporter.section("chapters, first failing cell")
    for chapter, cells in failures.items():
        later = f" ({len(cells) - 1} later cells failed too)" if len(cells) > 1 else ""
        terminalreporter.write_line(f"{chapter}: {cells[0]}{later}")
        terminalreporter.write_line(f"    if the change is meant: make refs CHAPTER={chapter}")
