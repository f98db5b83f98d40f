"""The one engine: nbval, through pytest, executes the chapters and stores what it executed.

For the book and for references it executes without comparing, for `make test` it executes the
references and compares. `tools/plugin.py` is the part of it that runs inside pytest.
"""

import copy
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
from nbformat import NotebookNode
from nbval.plugin import coalesce_streams

from tools.book import Book, BookError, code_cells, name_cell, read_chapter
from tools.ledger import KEPT
from tools.store import compared, demand_space, write_whole

AT_ONCE = 2  # chapters executed side by side; a kernel computes on one thread
STARTUP = 600  # seconds that a kernel may take to start, on a machine with other things to do
NOISE = 2.0  # a busy machine may take this many times the budgeted seconds of computing
HOME = Path(__file__).resolve().parents[1]  # where tools/ lies, whichever book is built


def environment(book: Book) -> dict[str, str]:
    """Environment of the kernels: one thread, repeatable, no user settings, the book's package."""
    path = [str(book.root), str(HOME), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "IPYTHONDIR": str(book.build / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "ICLBOOK_DESCRIBE": "tools.plotted",
        # What glibc has freed of large arrays it gives back, so that a peak is the chapter's own.
        "MALLOC_MMAP_THRESHOLD_": str(16 * 2**20),
    }


def command(book: Book, notebooks: list[Path], *, compare: bool) -> list[str]:
    """The pytest command that executes notebooks, and compares their text if so wanted."""
    workers = min(AT_ONCE, len(notebooks))
    return [
        *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "tools.plugin"),
        *("--nbval" if compare else "--nbval-lax", "--nbval-current-env"),
        *("--nbval-cell-timeout", str(book.config()["execute"]["timeout"])),
        *("--nbval-kernel-startup-timeout", str(STARTUP)),
        *(("-n", str(workers), "--dist", "loadscope") if workers > 1 else ()),
        # Not the settings of the unit tests, and nothing written but the runs.
        *("-o", "addopts=", "-W", "ignore", "-p", "no:cacheprovider", "--rootdir", str(book.root)),
        *map(str, notebooks),
    ]


def execute(book: Book, notebooks: list[Path], *, compare: bool) -> None:
    """Execute notebooks, two at a time, and store the runs of those without an exception.

    Raises:
        BookError: After all, if any failed; pytest has named chapter and cell by then.
    """
    (book.build / "ipython").mkdir(parents=True, exist_ok=True)
    line = command(book, notebooks, compare=compare)
    if subprocess.run(line, cwd=book.root, env=environment(book), check=False).returncode:  # noqa: S603
        raise BookError(
            "not every chapter ran as it should; they are named above, with their cells"
        )


def run_stale(book: Book, chapters: list[str]) -> None:
    """Execute the chapters that have no run of today's key.

    Raises:
        BookError: If one fails.
    """
    stale = [chapter for chapter in chapters if book.stored_run(chapter) is None]
    if not stale:
        print(f"nothing needs a run: what {len(chapters)} chapters depend on is as it was")
        return
    print(f"{len(chapters) - len(stale)} of {len(chapters)} chapters need no run")
    print(f"running {', '.join(stale)}", flush=True)
    demand_space(book)
    for left in book.build.glob("cells-*"):  # of a run that was killed
        if not psutil.pid_exists(int(left.name.removeprefix("cells-"))):
            shutil.rmtree(left, ignore_errors=True)
    folder = book.build / f"cells-{os.getpid()}"
    try:
        for chapter in stale:
            nb = read_chapter(book.source(chapter).read_text("utf8"))
            nb.cells = code_cells(nb)
            write_whole(folder / f"{chapter}.ipynb", nbformat.writes(nb))
        notebooks = [folder / f"{chapter}.ipynb" for chapter in stale]
        execute(book, notebooks, compare=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare_all(book: Book) -> None:
    """Execute every reference and compare what its cells say.

    Raises:
        BookError: If one fails or differs.
    """
    demand_space(book)
    execute(book, [book.reference(chapter) for chapter in book.chapters()], compare=True)


def refresh(book: Book, chapters: list[str]) -> None:
    """Write chapters' references from their runs, executing what is stale.

    Raises:
        BookError: For a chapter that fails, or that has output which cannot be compared.
    """
    try:
        run_stale(book, chapters)
    finally:  # what did run need not wait for what did not
        for chapter in chapters:
            if nb := book.stored_run(chapter):
                path = book.reference(chapter)
                old = path.read_text("utf8") if path.exists() else None
                new = nbformat.writes(make_reference(nb, chapter)) + "\n"
                write_whole(path, new)
                print(f"{'same' if old == new else 'new '} {path.relative_to(book.root)}")
    # What a run depends on may be edited under it; saying nothing would look like "same".
    if changed := [chapter for chapter in chapters if not book.stored_run(chapter)]:
        raise BookError(f"changed while they ran, so not written, run again: {', '.join(changed)}")


def make_reference(nb: NotebookNode, chapter: str) -> NotebookNode:
    """The part of an executed chapter that nbval compares: code cells and their text.

    Raises:
        BookError: If a cell has output that cannot be compared.
    """
    cells: list[NotebookNode] = []
    seen: set[str] = set()
    for number, cell in enumerate(code_cells(nb)):
        cell_id = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        while cell_id in seen:
            cell_id += "x"
        seen.add(cell_id)
        try:
            # Kernels send what is printed in pieces, never the same ones twice.
            outputs = [to_keep(output) for output in coalesce_streams(copy.deepcopy(cell.outputs))]
        except BookError as error:
            raise BookError(f"{chapter}: {name_cell(number, cell.source)} {error}") from error
        executed = {"execution_count": number + 1, "outputs": outputs}
        cells.append(nbformat.v4.new_code_cell(cell.source, id=cell_id, **executed))
    about = {"kernelspec": nb.metadata["kernelspec"]}
    reference: NotebookNode = nbformat.v4.new_notebook(cells=cells, metadata=about)
    return reference


def to_keep(output: NotebookNode) -> NotebookNode:
    """What a reference keeps of an output: its text, and the names of checks and glued numbers."""
    kept = compared(output)
    if output.get("name") == "stderr":
        raise BookError("writes to stderr, which differs from machine to machine: print instead")
    if "data" in output and not kept.data:
        raise BookError(
            f"shows {', '.join(output.data)} only, which is not compared: give it text too, or "
            "show figures with iclbook.figures.show"
        )
    said = output.get("metadata", {})
    if record := said.get("iclbook"):
        kept.metadata.iclbook = {name: record[name] for name in KEPT}
    if glued := said.get("scrapbook"):
        kept.metadata.scrapbook = {"name": glued["name"]}
    if "execution_count" in kept:
        kept.execution_count = None
    return kept


def budget(book: Book) -> list[str]:
    """Print what each chapter took; return a message for each that took too much or did not run.

    The time is what its kernel computed, on one thread: another program's work does not count.
    """
    limits = book.config()["sphinx"]["config"]
    seconds, mib = limits["icl_budget_seconds"], limits["icl_budget_mib"]
    print(f"{'chapter':32} {'seconds':>8} {'budget':>7} {'peak MiB':>9} {'budget':>7}")
    problems = []
    for chapter in book.chapters():
        nb = book.stored_run(chapter)
        if nb is None:
            problems.append(f"{chapter}: no run of today's sources is stored")
            continue
        took = nb.metadata["iclbook"]
        cpu, peak = took["cpu_seconds"], took["peak_mib"]
        print(f"{chapter:32} {cpu:8.1f} {seconds:7} {peak:9.0f} {mib:7}")
        if cpu > NOISE * seconds:
            problems.append(f"{chapter}: {cpu:.0f} s, over {NOISE} times {seconds} s")
        if peak > mib:
            problems.append(f"{chapter}: {peak:.0f} MiB, over {mib} MiB")
    return problems
