"""`python -m iclbook reproduce`: what it runs, what it writes, and what it says when it cannot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweep_cells
import torch
from distributed import LocalCluster

from iclbook import __main__ as command
from iclbook import sweep
from iclbook.sweep import Experiment, code_version, results

WIDE = 1.23456789012


def small(seeds: int) -> list[dict[str, Any]]:
    return [{"seed": seed} for seed in range(seeds)]


def full(seeds: int) -> list[dict[str, Any]]:
    return [{"seed": seed, "width": WIDE} for seed in range(2 * seeds)]


DOUBLES = Experiment("A-T1", "Doubles.", sweep_cells.double, small, full, seeds=2)
FAILS = Experiment("B-F2", "Fails.", sweep_cells.fails_on, small, full, seeds=2)
KNOWN = {"A-T1": DOUBLES, "A-T2": DOUBLES, "B-F2": FAILS}


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a book and its package, in which the command is run."""
    monkeypatch.setattr(command, "registry", lambda: KNOWN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the workers
    monkeypatch.setattr(sweep, "PACKAGE", tmp_path / "iclbook")
    monkeypatch.setattr(command, "PACKAGE", tmp_path / "iclbook")
    (tmp_path / "book").mkdir()
    (tmp_path / "iclbook").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    command.main(["reproduce", *arguments, "--workers", "1"])


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert isinstance(caught.value.code, str)  # on stderr, with exit status 1
    assert capsys.readouterr().out == ""
    return caught.value.code


def test_results_have_all_that_a_reader_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    run("A-T2", "--seeds", "1")
    path = Path("book/results/A-T1.json")  # named after the experiment, whichever row was asked for
    assert capsys.readouterr().out == f"{path}\n"
    assert [file.name for file in path.parent.iterdir()] == ["A-T1.json"]
    found = json.loads(path.read_text("utf8"))
    cells = found.pop("cells")
    assert [cell["cell"] for cell in cells] == [
        {"seed": seed, "width": WIDE, "device": "cpu"} for seed in (0, 1)
    ]
    assert cells[1]["result"] == {"device": "cpu", "twice": 2.469136, "third": 0.3333333}
    assert all(cell.keys() == {"cell", "result", "seconds"} for cell in cells)
    machine = found.pop("machine")
    assert machine.keys() == {"python", "packages", "processor", "cores", "device"}
    assert machine["packages"].keys() == {*sweep.PACKAGES}
    assert machine["packages"]["torch"] == torch.__version__
    assert machine["device"] == "cpu"
    assert machine["processor"]
    assert found == {
        "claims": ["A-T1", "A-T2"],
        "function": "sweep_cells.double",
        "version": code_version(sweep_cells.double),
        "size": "full",
        "seeds": 1,
        "commit": None,
    }
    assert len(path.read_text("utf8").splitlines()) < 40  # a line for each cell


def test_what_was_written_is_what_chapters_read(book: Path) -> None:
    run("A-T1")
    run("A-T1", "--size", "small", "--seeds", "3")  # beside the full results, not over them
    text = Path(sweep_cells.__file__).read_text("utf8")
    (book / "iclbook" / "sweep_cells.py").write_text(text, "utf8")
    for name, size in (("A-T1", 4), ("A-T1-small", 3)):
        path = Path(f"book/results/{name}.json")
        found = path.read_text("utf8").replace('"sweep_cells.', '"iclbook.sweep_cells.')
        path.write_text(found, "utf8")
        assert len(results(name)["cells"]) == size
    text = text.replace("2 * seed", "3 * seed")
    (book / "iclbook" / "sweep_cells.py").write_text(text, "utf8")
    with pytest.raises(ValueError, match="python -m iclbook reproduce A-T1 --size small"):
        results("A-T1-small")


def test_it_goes_on_where_it_stopped(book: Path) -> None:
    run("A-T1", "--seeds", "1")
    folder = book / "_build" / "sweeps" / "A-T1"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    run("A-T1", "--seeds", "2")
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(before) == 1 + 2
    assert len(after) == 1 + 4
    cells = before.keys() - {folder / "sweep.json"}
    assert {path: after[path] for path in cells} == {path: before[path] for path in cells}


def test_without_a_book_results_lie_in_the_folder(book: Path) -> None:
    (book / "book").rmdir()
    run("A-T1", "--size", "small")
    assert (book / "results" / "A-T1-small.json").exists()


def test_cells_of_once_say_more_and_are_taken(book: Path) -> None:
    run("A-T1")
    for path in (book / "_build" / "sweeps" / "A-T1").glob("*[0-9a-f].json"):
        if path.name != "sweep.json":
            record = json.loads(path.read_text("utf8")) | {"environment": {"cores": 2}}
            path.write_text(json.dumps(record), "utf8")
    before = Path("book/results/A-T1.json").read_text("utf8")
    run("A-T1")
    assert Path("book/results/A-T1.json").read_text("utf8") == before


def test_the_list_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    run("--list")
    lines = ["A-T1: Doubles.", "A-T2: Doubles.", "B-F2: Fails."]
    assert capsys.readouterr().out.splitlines() == lines


def test_the_commit_is_that_of_the_code(book: Path) -> None:
    assert command.commit() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (book / "iclbook" / "a.py").touch()
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True)
    clean = str(command.commit())
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (book / "iclbook" / "a.py").write_text("1")
    assert command.commit() == f"{clean}-dirty"


# What it refuses


def test_unknown_rows_are_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "A-T9") == "claim: got A-T9, expected one of A-T1, A-T2, B-F2"
    assert "got None, expected one of" in said(capsys)


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_a_bad_number_of_seeds_is_refused(capsys: pytest.CaptureFixture[str], seeds: str) -> None:
    assert said(capsys, "A-T1", "--seeds", seeds).startswith(f"--seeds: got {seeds}, expected")


def test_a_device_that_is_not_there_is_refused(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "A-T1", "--device", "cuda").startswith("--device: got cuda, expected")
    assert not (book / "_build").exists()


def test_a_failing_cell_is_said_and_nothing_written(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "B-F2", "--size", "small")
    assert text.startswith("1 of 2 cells have no result.\n")
    assert '{"seed": 1, "device": "cpu"}:\n' in text
    assert not (book / "book" / "results").exists()


def test_a_folder_of_another_sweep_is_refused(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.sweep(sweep_cells.threads, [{"seed": 1}], book / "_build" / "sweeps" / "A-T1")
    assert "with cells of sweep_cells.threads, expected" in said(capsys, "A-T1")


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes a call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "silent", "nowhere", "", "udp://a:1"])
def test_an_unreachable_scheduler_is_said_soon(
    book: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    silent: str,
    address: str,
) -> None:
    assert command.PATIENCE <= 5  # and as much for the imports
    monkeypatch.setattr(command, "PATIENCE", 1.0)
    began = time.monotonic()
    address = silent if address == "silent" else address
    text = said(capsys, "A-T1", "--scheduler", address)
    assert time.monotonic() - began < 3
    assert text.startswith(f"--scheduler: got {address}, where no Dask scheduler answers (")
    assert not (book / "_build").exists()


def test_without_dask_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'iclbook[cluster]'" in said(capsys, "A-T1", "--scheduler", "tcp://a:1")


# Processes


def test_a_cluster_computes_it() -> None:
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        run("A-T1", "--scheduler", cluster.scheduler_address)
        with pytest.raises(SystemExit, match="--device: got cuda"):
            run("A-T1", "--scheduler", cluster.scheduler_address, "--device", "cuda")
    assert len(json.loads(Path("book/results/A-T1.json").read_text("utf8"))["cells"]) == 4


def test_ctrl_c_ends_the_command_and_its_processes(book: Path) -> None:
    code = f"""
import runpy
import sys
import sweep_cells
from iclbook.linear import experiments
from iclbook.sweep import Experiment
def cells(seeds):
    return [{{"seed": 2, "log": {str(book / "log")!r}, "gate": "never"}}]
waits = Experiment("A-T1", "Waits.", sweep_cells.waits, cells, cells, 1)
experiments.HEAVY = {{"A-T1": waits}}
if __name__ == "__main__":
    sys.argv = ["iclbook", "reproduce", "A-T1", "--workers", "1"]
    runpy.run_module("iclbook", run_name="__main__", alter_sys=True)  # as python -m does
"""
    (book / "log").mkdir()
    (book / "run.py").write_text(code)
    where = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "run.py"],
        env=where,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    while not sweep_cells.begun(str(book / "log")) and started.poll() is None:
        time.sleep(0.02)
    children = psutil.Process(started.pid).children()
    assert children
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    error = started.communicate(timeout=20)[1]
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert error == "interrupted; the same command goes on from here\n"
