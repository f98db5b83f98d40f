"""The one engine, inside pytest: nbval executes the chapters, and what it executed is stored.

`python -m tools` loads this as a plugin. While nbval runs a notebook, the fresh outputs of its
cells (images too) are collected; after the last cell they go to the store, if every cell ran
without an exception. It imports nothing of iclbook: the book that is run may have another.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import nbformat
import psutil
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

from tools.book import Book, code_cells, name_cell, read_chapter
from tools.store import compared, cpu_seconds, peak_mib, store_run

RUNS = pytest.StashKey["Run"]()
TURN = 1.0  # seconds between two looks at a silent kernel
STUCK = 0.001  # less than this share of a processor is no progress


@dataclass
class Run:
    """One chapter while nbval executes it."""

    chapter: str
    key: str
    start: float
    cells: list[IPyNbCell] = field(default_factory=list)
    peak: float = 0.0
    cpu: float = 0.0
    failed: bool = False


def book_of(item: pytest.Item) -> Book:
    """The book that is being run."""
    return Book(item.config.rootpath)


def chapter_of(item: pytest.Item) -> str:
    """The chapter of a cell: its notebook is a reference, or in a folder of its own of _build."""
    book = book_of(item)
    inside = item.path.with_suffix("")
    if inside.is_relative_to(book.references):
        return inside.relative_to(book.references).as_posix()
    return "/".join(inside.relative_to(book.build).parts[1:])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Start the clock before a chapter's first cell, which starts its kernel."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    if RUNS not in item.parent.stash:
        chapter = chapter_of(item)
        item.parent.stash[RUNS] = Run(chapter, book_of(item).key(chapter), time.perf_counter())
    if item.parent.stash[RUNS].failed:
        pytest.skip("an earlier cell failed")
    result = yield
    kernel = item.parent.kernel
    if not isinstance(kernel.get_message, Patient):
        kernel.get_message = Patient(kernel, item.config.option.nbval_cell_timeout)
    item.compare_outputs = only_text(item.compare_outputs)
    return result


def only_text(compare: Callable[[list[Any], list[Any]], bool]) -> Callable[..., bool]:
    """Comparison of what references keep."""
    return lambda new, old: compare([compared(one) for one in new], [compared(one) for one in old])


class Patient:
    """Waits for a kernel's messages as long as the kernel gets on, however loaded the machine.

    nbval waits the time limit of a cell for its end, and a fixed 5 s for its outputs (nbval#231),
    by the clock on the wall. Here the limit counts the seconds that the kernel has computed; one
    that stands still is given up after as many on the wall.
    """

    def __init__(self, kernel: RunningKernel, limit: float) -> None:
        self.kernel, self.limit, self.plain = kernel, limit, kernel.get_message

    def computed(self) -> float:
        """Seconds that the kernel has computed; 0 if it is no more."""
        try:
            return cpu_seconds(self.kernel.km.provisioner.pid)
        except psutil.Error:
            return 0.0

    def __call__(self, stream: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Next message; Empty if none comes."""
        clock, cpu = time.monotonic(), self.computed()
        while True:
            try:
                message: dict[str, Any] = self.plain(stream, timeout=TURN)
            except Empty:
                if not self.kernel.is_alive():
                    raise
                waited, used = time.monotonic() - clock, self.computed() - cpu
                if used > self.limit or (waited > self.limit and used < STUCK * waited):
                    raise
            else:
                return message


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note what a cell did."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    run = item.parent.stash[RUNS]
    run.cells.append(item)
    try:
        return (yield)
    finally:
        kernel = item.parent.kernel
        if kernel.is_alive():
            pid = kernel.km.provisioner.pid
            run.peak, run.cpu = peak_mib(pid), cpu_seconds(pid)
        raised = [out for out in item.test_outputs or [] if out.output_type == "error"]
        run.failed |= not kernel.is_alive() or item.parent.timed_out or bool(raised)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    """After a chapter's last cell: store the run."""
    last = nextitem is None or nextitem.parent is not item.parent
    if isinstance(item, IPyNbCell) and last:
        run = item.parent.stash[RUNS]
        seconds = time.perf_counter() - run.start
        try:
            stored = not run.failed and keep(book_of(item), run, seconds)
        except OSError as error:
            pytest.fail(f"its run cannot be stored: {error.strerror}", pytrace=False)
        if stored:
            took = f"{seconds:.1f} s, {run.peak:.0f} MiB"
            item.user_properties.append(("done", f"{run.chapter}: {took}"))
    return (yield)


def keep(book: Book, run: Run, seconds: float) -> bool:
    """Store the outputs of an executed chapter, if it has the cells that were executed."""
    cells = code_cells(read_chapter(book.source(run.chapter).read_text("utf8")))
    if [cell.source for cell in cells] != [item.cell.source for item in run.cells]:
        return False
    for number, (cell, executed) in enumerate(zip(cells, run.cells, strict=True), 1):
        cell.execution_count = number
        cell.outputs = nbformat.from_dict(executed.test_outputs)
    # Without the prose, which may change while the run stays good.
    nb = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": run.cells[0].parent.nb.metadata["kernelspec"]}
    )
    store_run(book, run.chapter, nb, run.key, seconds=seconds, cpu=run.cpu, mib=run.peak)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Note chapter and cell on a failure's report, which also travels from xdist's workers."""
    report: Any = yield
    if isinstance(item, IPyNbCell) and report.failed and call.excinfo is not None:
        cell = name_cell(item.cell_num, item.cell.source)
        report.user_properties.append(
            ("cell", (chapter_of(item), cell, reason(item, call.excinfo)))
        )
    return report


def reason(item: IPyNbCell, found: pytest.ExceptionInfo[BaseException]) -> str:
    """Why a cell failed, in one line."""
    kernel = item.parent.kernel
    if kernel is None or not kernel.is_alive():
        return f"its kernel died ({found.value})"
    raised = [out for out in item.test_outputs or [] if out.output_type == "error"]
    return f"{found.value}: {raised[0].ename}: {raised[0].evalue}" if raised else str(found.value)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """No dots: a line for each chapter says more."""
    if report.when == "call" and report.passed and ".ipynb" in report.nodeid:
        return "passed", "", ""
    return None


class Lines:
    """Says which chapters are done, as they are."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say that a chapter is done, with its last report."""
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == "done":
                self.terminal.ensure_newline()
                self.terminal.write_line(f"done {value}")
                self.terminal.flush()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the lines, which only the process that reports can write."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Lines(terminal))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each chapter's first failing cell; where outputs only differ, nbval goes on."""
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
        if cells[0].endswith("Cell outputs differ"):
            terminalreporter.write_line(f"    if the change is meant: make refs CHAPTER={chapter}")
