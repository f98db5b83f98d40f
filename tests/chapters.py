"""The chapters' workshop: check, run and compare them, and build the site from what ran.

    python tests/chapters.py check             chapters, contents and references agree
    python tests/chapters.py run [CHAPTER]     execute the chapters whose stored run is stale
    python tests/chapters.py refs [CHAPTER]    execute, and write the committed references
    python tests/chapters.py nbval             execute all with nbval, against the references
    python tests/chapters.py budget            what each chapter took, against what it may take
    python tests/chapters.py site              build _build/html from the stored runs

The executed form of a chapter lies in `_build/runs/linear/prompts.ipynb`, written by `run`, `refs`
or `nbval` (through conftest.py), and counts only while its key, a hash of all that it depends on,
is today's.
"""

import argparse
import asyncio
import copy
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
from bookcheck import Book, BookError, check, code_cells, name_cell, read_chapter
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_client.manager import AsyncKernelManager
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager
from nbval.plugin import coalesce_streams, get_sanitize_patterns
from traitlets import default

AT_ONCE = 2  # chapters executed side by side; a kernel computes on one thread
NOISE = 2.0  # a busy machine may take this many times the budgeted seconds
IMAGES = {"image/png", "image/jpeg"}  # nbval does not compare these


# Running


def set_kernel_environment(book: Book) -> None:
    """Kernels started from here use one thread, repeat themselves and ignore user settings."""
    settings = book.root / "_build" / "ipython"
    settings.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYTHONHASHSEED="0",
        IPYTHONDIR=str(settings),
    )


def peak_mib(pid: int) -> float:
    """Peak memory of a living process in MiB (where the system keeps none: its present memory)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def store_run(
    book: Book, chapter: str, nb: NotebookNode, key: str, seconds: float, mib: float
) -> None:
    """Write an executed notebook to the store; a reader sees the old one or the new one whole."""
    nb.metadata["iclbook"] = {
        "key": key,
        "seconds": round(seconds, 2),
        "peak_mib": round(mib, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_whole(book.run(chapter), nbformat.writes(nb) + "\n")


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, "utf8")
    draft.replace(path)


class OwnKernel(AsyncKernelManager):
    """Starts this environment's kernel, whatever kernels the user has installed as python3."""

    @default("kernel_spec_manager")
    def _own_kernel_spec(self) -> NbvalKernelspecManager:
        return NbvalKernelspecManager()


async def execute(book: Book, chapter: str, slots: asyncio.Semaphore) -> NotebookNode:
    """Execute a chapter in this environment's own kernel and store the run.

    Raises BookError, naming chapter and cell, at the first cell that fails; nothing is stored then.
    """
    async with slots:
        key = book.key(chapter)
        nb = read_chapter(book.source(chapter).read_text("utf8"))
        current, peak = "starting", 0.0

        def at_cell(cell: NotebookNode, cell_index: int) -> None:
            nonlocal current
            if cell.cell_type == "code":
                number = sum(c.cell_type == "code" for c in nb.cells[:cell_index])
                current = name_cell(number, cell.source)
                progress(f"  {chapter}: {current}")

        def after_cell(**_: object) -> None:
            nonlocal peak
            peak = peak_mib(client.km.provisioner.pid)

        print(f"run  {chapter}", flush=True)
        start = time.perf_counter()
        client = NotebookClient(
            nb,
            kernel_manager_class=OwnKernel,
            kernel_name=CURRENT_ENV_KERNEL_NAME,
            timeout=book.config()["execute"]["timeout"],
            record_timing=False,
            resources={"metadata": {"path": str(book.source(chapter).parent)}},
            on_cell_start=at_cell,
            on_cell_executed=after_cell,
        )
        try:
            await client.async_execute(stderr=subprocess.DEVNULL)
        except CellExecutionError as error:
            trace = re.sub(r"\x1b\[[\d;]*m", "", error.traceback)  # without its colours
            reason = f"{error.ename}: {error.evalue}\n{trace}"
            raise BookError(f"{chapter}: {current} failed with {reason}") from error
        except (CellTimeoutError, DeadKernelError) as error:
            raise BookError(f"{chapter}: {current} failed with {error}") from error
        seconds = time.perf_counter() - start
        store_run(book, chapter, nb, key, seconds, peak)
        print(f"done {chapter}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
        return nb


def progress(line: str) -> None:
    """Show where a long run is, on a terminal only."""
    if sys.stdout.isatty():
        print(f"{line[:100]}\033[K", end="\r", flush=True)


def execute_all(book: Book, chapters: list[str]) -> dict[str, NotebookNode]:
    """Execute chapters, two at a time. After all: BookError with every one that failed."""

    async def together() -> list[NotebookNode | BaseException]:
        slots = asyncio.Semaphore(AT_ONCE)
        runs = (execute(book, chapter, slots) for chapter in chapters)
        return await asyncio.gather(*runs, return_exceptions=True)

    set_kernel_environment(book)
    results = dict(zip(chapters, asyncio.run(together()), strict=True))
    failures = [result for result in results.values() if isinstance(result, BaseException)]
    for failure in failures:
        if not isinstance(failure, BookError):
            raise failure
    if failures:
        raise BookError("\n\n".join(map(str, failures)))
    return results


def run_stale(book: Book, chapters: list[str]) -> None:
    """Execute the chapters that have no run of today's key."""
    stale = [chapter for chapter in chapters if book.stored_run(chapter) is None]
    print(f"{len(chapters) - len(stale)} of {len(chapters)} chapters need no run", flush=True)
    execute_all(book, stale)


# References


def refresh(book: Book, chapters: list[str]) -> None:
    """Write chapters' references from their runs, executing what is stale.

    Raises BookError for a chapter that fails, or that has output which cannot be compared.
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
    """The part of an executed chapter that nbval compares: code cells and their text."""
    cells, seen = [], set()
    for number, cell in enumerate(code_cells(nb)):
        cell_id = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        while cell_id in seen:
            cell_id += "x"
        seen.add(cell_id)
        try:
            # Kernels send what is printed in pieces, never the same ones twice.
            outputs = [text_of(output) for output in coalesce_streams(copy.deepcopy(cell.outputs))]
        except BookError as error:
            raise BookError(f"{chapter}: {name_cell(number, cell.source)} {error}") from error
        executed = {"execution_count": number + 1, "outputs": outputs}
        cells.append(nbformat.v4.new_code_cell(cell.source, id=cell_id, **executed))
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": nb.metadata["kernelspec"]})


def text_of(output: NotebookNode) -> NotebookNode:
    """Strip an output of its images and, in its text, of what nbval is told to overlook."""
    if output.get("name") == "stderr" or "image/svg+xml" in output.get("data", {}):
        raise BookError(
            "writes to stderr or shows an SVG file, neither of which repeats from machine to "
            "machine: print text, and show figures with iclbook.figures.show"
        )
    patterns = get_sanitize_patterns((Path(__file__).parent / "nbval-sanitize.cfg").read_text())

    def clean(content: object) -> object:
        for regex, replacement in patterns if isinstance(content, str) else ():
            content = re.sub(regex, replacement, content)
        return content

    if "data" in output:
        output.data = {mime: clean(output.data[mime]) for mime in output.data if mime not in IMAGES}
    else:
        output.text = clean(output.text)
    if "execution_count" in output:
        output.execution_count = None  # nbclient counts executions, nbval does not
    return output


def nbval_command(book: Book) -> list[str]:
    """The pytest command that executes every chapter and compares its text with the reference."""
    workers = min(AT_ONCE, len(book.chapters()))
    return [
        *(sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"),
        *("--nbval-sanitize-with", str(book.root / "tests" / "nbval-sanitize.cfg")),
        *("--nbval-cell-timeout", str(book.config()["execute"]["timeout"])),
        *("-n", str(workers), "--dist", "loadscope", str(book.references)),
    ]


def budget(book: Book) -> list[str]:
    """Print what each chapter took; return a message for each that took too much or did not run."""
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
        print(f"{chapter:32} {took['seconds']:8.1f} {seconds:7} {took['peak_mib']:9.0f} {mib:7}")
        if took["seconds"] > NOISE * seconds:
            problems.append(f"{chapter}: {took['seconds']:.0f} s, over {NOISE} times {seconds} s")
        if took["peak_mib"] > mib:
            problems.append(f"{chapter}: {took['peak_mib']:.0f} MiB, over {mib} MiB")
    return problems


# The site


def build_site(book: Book) -> str:
    """Build the site from the stored runs and return its address.

    The site is built aside and takes the old one's place only if all went well.
    Raises BookError if a run is stale, if Sphinx warns, or if it had to execute anything itself.
    """
    aside = book.root / "_build" / "next"
    shutil.rmtree(aside, ignore_errors=True)
    cache = get_cache(aside / "_build" / ".jupyter_cache")  # where jupyter-book looks by default
    for chapter in book.chapters():
        fill_cache(book, chapter, cache)
    succeeded = run_jupyter_book(book, aside)
    executed = sorted(record.uri for record in cache.list_project_records())
    if executed:
        raise BookError(f"Sphinx executed {', '.join(executed)} itself instead of using the run")
    if not succeeded:
        raise BookError(f"the site has errors or warnings (above); {book.html} is as it was")
    old = book.root / "_build" / "old"
    shutil.rmtree(old, ignore_errors=True)
    if book.html.exists():
        book.html.rename(old)
    (aside / "_build" / "html").rename(book.html)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(aside)
    return (book.html / "index.html").resolve().as_uri()


def run_jupyter_book(book: Book, aside: Path) -> bool:
    """Build strictly and afresh into `aside`, showing Sphinx's output; True if all was well."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", book.root]
    command += ["-W", "-n", "--keep-going", "--all", "--path-output", aside]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=book.root, env=environment, stdout=subprocess.PIPE, text=True
    ) as sphinx:
        # After this line jupyter-book praises the folder that is about to be renamed.
        for line in iter(sphinx.stdout.readline, ""):
            if line.startswith("The HTML pages are in"):
                break
            print(line, end="", flush=True)
        sphinx.communicate()
    return sphinx.returncode == 0


def fill_cache(book: Book, chapter: str, cache: JupyterCacheAbstract) -> None:
    """Give Sphinx's cache the chapter as Sphinx reads it, with the outputs of its stored run."""
    run = book.stored_run(chapter)
    if run is None:
        raise BookError(f"{chapter}: no run of today's sources is stored; run `make book`")
    nb = read_myst_markdown_notebook(book.source(chapter).read_text("utf8"))
    for cell, executed in zip(code_cells(nb), code_cells(run), strict=True):
        cell.update(outputs=executed.outputs, execution_count=executed.execution_count)
    took = {"execution_seconds": run.metadata["iclbook"]["seconds"]}
    source = str(book.source(chapter))
    cache.cache_notebook_bundle(
        CacheBundleIn(nb, source, data=took), check_validity=False, overwrite=True
    )


def choose(book: Book, chapter: str | None) -> list[str]:
    """The chapters that a command is for: the named one, or all."""
    chapters = book.chapters()
    if chapter and chapter not in chapters:
        raise BookError(f"no chapter {chapter}; there are {', '.join(chapters)}")
    return [chapter] if chapter else chapters


def report(problems: list[str]) -> None:
    if problems:
        raise BookError("\n".join(problems))
    print("nothing is wrong", flush=True)


def main(arguments: list[str], book: Book) -> int:
    """Carry out one command; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["check", "run", "refs", "nbval", "budget", "site"])
    parser.add_argument("chapter", nargs="?", help="an id such as linear/prompts; default: all")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "check":
                report(check(book))
            case "run":
                run_stale(book, choose(book, options.chapter))
            case "refs":
                refresh(book, choose(book, options.chapter))
            case "nbval":
                set_kernel_environment(book)
                return subprocess.run(nbval_command(book), cwd=book.root, check=False).returncode
            case "budget":
                report(budget(book))
            case "site":
                print(f"The book: {build_site(book)}")
    except BookError as error:
        print(f"\n{options.command} failed\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Book(Path(__file__).resolve().parents[1])))
