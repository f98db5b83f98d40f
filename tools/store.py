"""The store of executed chapters, and what of an output is compared."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock
import nbformat
import psutil
from nbformat import NotebookNode

from tools.book import Book, BookError

NEEDED_MIB = 100  # free space that a build may need
GLUED = "application/papermill.record/"  # numbers that the prose takes from a cell


@contextmanager
def alone(book: Book) -> Iterator[None]:
    """Let one process at a time build a book; whoever comes second says so and waits.

    The lock is the system's, so one that was killed holds it no longer.
    """
    book.build.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(book.build / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("another build is at work in this folder: waiting for it to end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def demand_space(book: Book) -> None:
    """Make sure, before minutes of work, that there is room for what comes of it.

    Raises:
        BookError: If there is not.
        OSError: If the folder cannot be made.
    """
    book.build.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(book.build).free / 2**20
    if free < NEEDED_MIB:
        raise BookError(
            f"the disk is full: {book.build} has {free:.0f} MiB left, and a build may need "
            f"{NEEDED_MIB} MiB"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that others see the old one or the new one whole, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf8", newline="\n")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def store_run(
    book: Book, chapter: str, nb: NotebookNode, key: str, *, seconds: float, cpu: float, mib: float
) -> None:
    """Write an executed chapter to the store."""
    nb.metadata["iclbook"] = {
        "key": key,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mib": round(mib, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_whole(book.run(chapter), nbformat.writes(nb) + "\n")


def cpu_seconds(pid: int) -> float:
    """Seconds that a living process has computed, which do not depend on what else runs."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_mib(pid: int) -> float:
    """Peak memory of a living process in MiB (where the system keeps none: its present memory)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def compared(output: NotebookNode) -> NotebookNode:
    """The part of an output that references keep and nbval compares: its text.

    Images and HTML are another form of what `text/plain` says, and differ between machines.
    """
    kept = NotebookNode({key: value for key, value in output.items() if key != "metadata"})
    if "data" in output:
        kept.data = {
            mime: content
            for mime, content in output.data.items()
            if mime == "text/plain" or mime.startswith(GLUED)
        }
        kept.metadata = NotebookNode()
    return kept
