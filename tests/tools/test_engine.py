"""The one engine, for real: what it runs, compares, keeps, refuses and says of failures."""

import errno
import json
import threading
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from small_book import HEADER, change, write

from tools import store
from tools.__main__ import main
from tools.book import Book, BookError, code_cells
from tools.engine import budget, compare_all, make_reference, refresh, run_stale
from tools.plugin import Patient
from tools.store import alone, store_run, write_whole

DISPLAY = "Cell 1 (from IPython.display import display)"
CELL = HEADER + "\n# A page\n\n```{{code-cell}} ipython3\n{}\n```\n"


def printed(book: Book) -> str:
    """What the stored run of a/one printed."""
    run = book.stored_run("a/one")
    assert run is not None
    return str(code_cells(run)[1].outputs[0].text)


def test_the_reference_holds_text_and_what_was_checked(book: Book) -> None:
    path = book.reference("a/one")
    text, drawing = code_cells(nbformat.read(path, as_version=4))[1].outputs
    assert text.text == "2.0000\n(dimensionless)\n"  # in one piece
    assert drawing.data == {"text/plain": "a dot"}
    assert drawing.metadata["iclbook"] == {
        "claim": "A-F1",
        "part": "p",
        "control": False,
        "verdict": "holds",
    }
    run = book.stored_run("a/one")
    assert run is not None
    drawing = code_cells(run)[1].outputs[1]
    assert "<figure>" in drawing.data["text/html"]
    assert drawing.metadata["iclbook"]["measured"] == 2.0
    assert path.stat().st_size < 2048


@pytest.mark.parametrize(
    "output",
    [
        nbformat.v4.new_output("stream", name="stderr", text="careful"),
        nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg></svg>"}),
        nbformat.v4.new_output("display_data", data={"text/html": "<b>2</b>"}),
    ],
)
def test_output_that_cannot_be_compared_is_refused(
    book: Book, output: nbformat.NotebookNode
) -> None:
    nb = book.stored_run("a/one")
    assert nb is not None
    nb.cells[0].outputs = [output]
    with pytest.raises(BookError, match=r"a/one: Cell 0 \(from iclbook.risk import risk\) "):
        make_reference(nb, "a/one")


def test_comparing_finds_a_thousandth_and_an_exception_and_keeps_what_ran(
    book: Book, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (book.source, book.reference):
        write(path("a/two"), path("a/one").read_text("utf8").replace("risk(2.0)", "risk(-2.0)"))
    with book.source("a/two").open("a") as file:  # goes on after the exception
        file.write("\n```{code-cell} ipython3\nprint(1)\n```\n")
    changed = "if x < 0:\n        raise ValueError('negative')\n    return 1.001 * x"
    change(book.root / "iclbook" / "risk.py", "return 1.0 * x", changed)
    with pytest.raises(BookError, match="not every chapter ran as it should"):
        compare_all(book)
    said = capfd.readouterr().out
    assert f"a/one: {DISPLAY}: Cell outputs differ" in said
    assert "if the change is meant: make refs CHAPTER=a/one" in said
    cause = "Cell execution caused an exception: ValueError: negative"
    assert f"a/two: {DISPLAY}: {cause}" in said
    # What ran to its end can be shown; what did not cannot.
    assert "2.0020" in printed(book)
    assert book.stored_run("a/two") is None


def test_only_stale_chapters_run_and_changed_outputs_are_no_failure(
    book: Book, capfd: pytest.CaptureFixture[str]
) -> None:
    run_stale(book, ["a/one"])
    assert "nothing needs a run" in capfd.readouterr().out
    change(book.root / "iclbook" / "risk.py", "1.0 * x", "3.0 * x")
    write(book.build / "cells-999999999" / "a" / "one.ipynb", "left by a run that was killed")
    run_stale(book, ["a/one"])
    said = capfd.readouterr().out
    assert "running a/one" in said
    assert "done a/one: " in said
    assert "6.0000" in printed(book)
    run = book.stored_run("a/one")
    assert run is not None
    took = run.metadata["iclbook"]
    assert 0 < took["cpu_seconds"] < 20
    assert took["seconds"] > 0
    assert took["peak_mib"] > 10
    left = {path.name for path in book.build.iterdir()}
    assert left <= {"runs", "ipython"}


def test_failing_chapters_are_named_with_their_cells(
    book: Book, capfd: pytest.CaptureFixture[str]
) -> None:
    write(book.root / "_config.yml", "execute: {timeout: 3}\n")
    change(book.source("a/one"), "risk(2.0)", "risk(1, 2)")
    write(book.source("a/two"), CELL.format("import os\n\nos._exit(1)"))
    write(book.source("a/three"), CELL.format("import time\n\ntime.sleep(1000)"))
    write(book.source("a/four"), CELL.format("while True:\n    pass"))
    assert main(["run"], book) == 1
    said = capfd.readouterr()
    assert f"a/one: {DISPLAY}: Cell execution caused an exception: TypeError" in said.out
    assert "a/two: Cell 0 (import os): its kernel died" in said.out
    for name, first in (("three", "import time"), ("four", "while True:")):
        assert f"a/{name}: Cell 0 ({first}): Timeout of 3 seconds exceeded" in said.out
    assert "run failed" in said.err
    assert "Traceback" not in said.err
    for chapter in ("a/one", "a/two", "a/three", "a/four"):
        assert book.stored_run(chapter) is None


def test_a_source_that_changes_while_its_chapter_runs_is_said_and_not_written(book: Book) -> None:
    edit = f'print("edited", file=open("{book.root}/iclbook/risk.py", "a"))'
    change(book.source("a/one"), "from iclbook.risk import risk", edit)
    change(book.source("a/one"), "risk(2.0)", "2.0")
    before = book.reference("a/one").read_text("utf8")
    with pytest.raises(BookError, match=r"changed while they ran, .* run again: a/one$"):
        refresh(book, ["a/one"])
    assert book.reference("a/one").read_text("utf8") == before


def test_unknown_chapter_is_an_error(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a/two"], book) == 1
    assert "no chapter a/two; there are a/one" in capsys.readouterr().err


def test_chapter_over_its_budget(book: Book) -> None:
    limits = "{icl_budget_seconds: 10, icl_budget_mib: 1000}"
    write(book.root / "_config.yml", f"sphinx: {{config: {limits}}}\n")
    assert budget(book) == []
    nb = book.stored_run("a/one")
    assert nb is not None
    key = book.key("a/one")
    store_run(book, "a/one", nb, key, seconds=99, cpu=9, mib=9)
    assert budget(book) == []  # it waited for others
    store_run(book, "a/one", nb, key, seconds=99, cpu=21, mib=1001)
    assert budget(book) == [
        "a/one: 21 s, over 2.0 times 10 s",
        "a/one: 1001 MiB, over 1000 MiB",
    ]
    change(book.source("a/one"), "risk(2.0)", "risk(4.0)")
    assert budget(book) == ["a/one: no run of today's sources is stored"]


# Patience


class SlowKernel:
    """A kernel whose message comes after some turns; each turn takes time and computing."""

    def __init__(self, turns: int, wall: float, cpu: float) -> None:
        self.turns, self.wall, self.cpu = turns, wall, cpu
        self.clock = self.computed = 0.0
        self.alive = True
        self.km = SimpleNamespace(provisioner=SimpleNamespace(pid=1))

    def get_message(self, stream: str, timeout: float) -> dict[str, Any]:
        self.turns -= 1
        if self.turns < 0:
            return {"stream": stream, "timeout": timeout}
        self.clock += self.wall
        self.computed += self.cpu
        raise Empty

    def is_alive(self) -> bool:
        return self.alive


def wait_for(kernel: SlowKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient(kernel, limit=120)  # type: ignore[arg-type]
    monkeypatch.setattr(patient, "computed", lambda: kernel.computed)
    monkeypatch.setattr("tools.plugin.time.monotonic", lambda: kernel.clock)
    assert patient("iopub", timeout=5)["stream"] == "iopub"


def test_a_kernel_that_gets_on_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 turns of 10 s on the wall, a hundredth of a processor: 1000 s, of them 10 s computed.
    wait_for(SlowKernel(turns=100, wall=10, cpu=0.1), monkeypatch)


@pytest.mark.parametrize(("wall", "cpu"), [(10, 10), (10, 0.0)])
def test_one_that_has_computed_enough_or_stands_still_is_not(
    monkeypatch: pytest.MonkeyPatch, wall: float, cpu: float
) -> None:
    kernel = SlowKernel(turns=100, wall=wall, cpu=cpu)
    with pytest.raises(Empty):
        wait_for(kernel, monkeypatch)
    assert 120 < kernel.clock <= 140


def test_nor_one_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SlowKernel(turns=100, wall=10, cpu=10)
    kernel.alive = False
    with pytest.raises(Empty):
        wait_for(kernel, monkeypatch)
    assert kernel.clock == 10


# Writing


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "old\n")
    full = OSError(errno.ENOSPC, "No space left on device", str(path))

    def no_space(*_: object, **__: object) -> None:
        raise full

    for name in ("write_text", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, no_space)
            with pytest.raises(OSError, match="No space left"):
                write_whole(path, "new\n")
        assert [one.name for one in path.parent.iterdir()] == ["file.txt"]
        assert path.read_text("utf8") == "old\n"


@pytest.mark.parametrize("command", ["book", "run", "refs", "site"])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    unrun: Book, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write(unrun.build, "a file where the folder should be")
    assert main([command], unrun) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"\n{command} failed\n{unrun.build}")
    assert said.count("\n") == 3


def test_the_second_of_two_builds_says_so_and_waits(
    unrun: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    order = []

    def second() -> None:
        with alone(unrun):
            order.append("second")

    with alone(unrun):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]
    assert "another build is at work in this folder: waiting" in capsys.readouterr().out


def test_what_is_compared_is_text() -> None:
    output = nbformat.v4.new_output(
        "display_data",
        data={
            "text/plain": "t",
            "text/html": "h",
            "image/png": "i",
            f"{store.GLUED}text/plain": "1",
        },
        metadata={"any": 1},
    )
    kept = json.loads(json.dumps(store.compared(output)))
    assert kept["data"] == {"text/plain": "t", f"{store.GLUED}text/plain": "1"}
    assert kept["metadata"] == {}
    stream = nbformat.v4.new_output("stream", name="stdout", text="said")
    assert store.compared(stream) == stream
