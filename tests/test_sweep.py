"""Sweeps: what was finished stays, what is missing is computed, and where does not matter."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client, LocalCluster
from sweep_cells import begun, fails, norms, threads

from iclbook import sweep as module
from iclbook.sweep import SweepError, results, sweep

HERE = Path(__file__).parent


@pytest.fixture
def log(tmp_path: Path) -> str:
    folder = tmp_path / "log"
    folder.mkdir()
    return str(folder)


def cells(log: str, **more: object) -> list[dict[str, Any]]:
    return [{"seed": seed, "log": log, **more} for seed in range(5)]


def found(paths: list[Path]) -> list[str]:
    """The results in files, to the last bit."""
    return [json.dumps(json.loads(path.read_text("utf8"))["result"]) for path in paths]


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


# Going on


def test_a_finished_sweep_computes_nothing(tmp_path: Path, log: str) -> None:
    first = sweep(norms, cells(log)[:3], tmp_path / "sweep")
    stamps = [path.stat().st_mtime_ns for path in first]
    assert begun(log) == [0, 1, 2]
    paths = sweep(norms, cells(log)[::-1], str(tmp_path / "sweep"))
    assert begun(log) == [0, 1, 2, 3, 4]
    assert paths[:-4:-1] == first  # in the order of the cells
    assert [path.stat().st_mtime_ns for path in first] == stamps
    assert [json.loads(path.read_text("utf8"))["cell"]["seed"] for path in paths] == [4, 3, 2, 1, 0]


def test_a_sweep_that_is_killed_goes_on(tmp_path: Path, log: str) -> None:
    gate, folder = tmp_path / "gate", tmp_path / "sweep"
    grid = cells(log, gate=str(gate))
    code = "from iclbook.sweep import sweep; from sweep_cells import norms"
    code += f"; sweep(norms, {grid}, {str(folder)!r})"
    path = os.pathsep.join(map(str, (HERE, HERE.parent)))
    killed = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    while 2 not in begun(log) and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert begun(log) == [0, 1, 2]
    gate.touch()
    paths = sweep(norms, grid, folder)
    assert begun(log) == [0, 1, 2, 2, 3, 4]
    assert found(paths) == found(sweep(norms, grid, tmp_path / "at once"))


def test_a_damaged_file_counts_as_none(tmp_path: Path, log: str) -> None:
    paths = sweep(norms, cells(log), tmp_path / "sweep")
    before = found(paths)
    whole = paths[1].read_text("utf8")
    for content in ("", whole[: len(whole) // 2], "[]", "{}"):
        paths[1].write_text(content, "utf8")
        assert found(sweep(norms, cells(log), tmp_path / "sweep")) == before
    assert begun(log) == [0, 1, 1, 1, 1, 1, 2, 3, 4]


def test_what_was_left_half_written_is_harmless(tmp_path: Path) -> None:
    (tmp_path / ".left.tmp").write_text("{")
    paths = sweep(threads, [{"seed": 1}], tmp_path)
    assert sweep(threads, [{"seed": 1}], tmp_path) == paths


def test_files_that_say_more_of_a_cell_are_finished_too(tmp_path: Path, log: str) -> None:
    paths = sweep(norms, cells(log), tmp_path / "sweep")
    before = found(paths)
    for path in paths:  # as they were once written
        record = json.loads(path.read_text("utf8")) | {"environment": {"cores": 2}}
        path.write_text(json.dumps(record), "utf8")
    assert found(sweep(norms, cells(log), tmp_path / "sweep")) == before
    assert begun(log) == [0, 1, 2, 3, 4]


class Stopped(Future[Any]):
    """The user interrupts when it is looked at."""

    def exception(self, timeout: float | None = None) -> BaseException | None:  # noqa: ARG002
        raise KeyboardInterrupt


class Interrupted(Executor):
    """Computes one cell; the user interrupts then."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, call: Callable[..., Any], /, *args: object, **_: object) -> Future[Any]:
        future = Future[Any]() if self.futures else Stopped()
        if not self.futures:
            future.set_result(call(*args))
        self.futures.append(future)
        return future


def test_an_interrupted_sweep_begins_nothing_more_and_keeps_the_rest(
    tmp_path: Path, log: str
) -> None:
    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sweep(norms, cells(log), tmp_path / "sweep", executor)
    assert [future.cancelled() for future in executor.futures] == [False, True, True, True, True]
    sweep(norms, cells(log), tmp_path / "sweep")
    assert begun(log) == [0, 1, 2, 3, 4]


# The same anywhere


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A real cluster of three processes here."""
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def alone(tmp_path: Path, log: str) -> list[str]:
    """Results of one process. The log is emptied."""
    lines = found(sweep(norms, cells(log, dies=False), tmp_path / "alone"))
    for path in Path(log).iterdir():
        path.unlink()
    return lines


def test_threads_and_processes_find_the_same(tmp_path: Path, log: str, alone: list[str]) -> None:
    for executor in (ThreadPoolExecutor(3), pool()):
        with executor:
            paths = sweep(norms, cells(log, dies=False), tmp_path / str(executor), executor)
        assert found(paths) == alone


def test_dask_finds_the_same_though_a_worker_is_killed(
    tmp_path: Path, log: str, alone: list[str], client: Client
) -> None:
    paths = sweep(norms, cells(log, dies=True), tmp_path / "dask", client.get_executor())
    assert begun(log) == [0, 1, 2, 2, 3, 4]  # the worker of seed 2 died the first time
    assert found(paths) == alone
    assert sweep(norms, cells(log, dies=True), tmp_path / "dask", client.get_executor()) == paths
    assert begun(log) == [0, 1, 2, 2, 3, 4]


def test_a_process_that_is_killed_is_reported_with_what_is_missing(
    tmp_path: Path, log: str, alone: list[str]
) -> None:
    grid = cells(log, dies=True)
    with pool() as executor, pytest.raises(SweepError, match="terminated abruptly") as caught:
        sweep(norms, grid, tmp_path / "sweep", executor)
    assert 2 in [cell["seed"] for cells in caught.value.failed.values() for cell in cells]
    with pool() as executor:
        paths = sweep(norms, grid, tmp_path / "sweep", executor)
    assert found(paths) == alone


def test_a_cell_has_one_thread_and_the_process_gets_its_own_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (path,) = sweep(threads, [{"seed": 0}], tmp_path)
        assert torch.get_num_threads() == 3
        assert found([path]) == ['{"seed": 0, "torch": 1}']
        with pytest.raises(SweepError):
            sweep(fails, [{"seed": 1}], tmp_path / "fails")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Failing


@pytest.mark.parametrize("where", ["here", "threads", "processes", "dask"])
def test_a_failing_cell_is_reported_and_loses_no_other(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    executor = {"threads": lambda: ThreadPoolExecutor(2), "processes": pool}.get(
        where, lambda: None
    )()
    if where == "dask":
        executor = request.getfixturevalue("client").get_executor()
    for _ in range(2):  # again it fails again, and is not remembered
        with pytest.raises(SweepError) as caught:
            sweep(fails, [{"seed": seed} for seed in range(5)], tmp_path, executor)
        failed = {cell["seed"]: text for text, (cell,) in caught.value.failed.items()}
        assert failed.keys() == {1, 2, 3}
        assert failed[1].endswith("UnpicklableError: 3 and 4")
        assert 'sweep_cells.py", line' in failed[1]
        assert "in fails" in failed[1]
        assert "ValueError: Out of range float values are not JSON compliant" in failed[2]
        assert failed[3].endswith("SystemExit: enough")
        said = str(caught.value)
        assert said.startswith("3 of 5 cells have no result.\n")
        assert f'\n1 such as {{"seed": 1}}:\n{failed[1]}\n' in said
        assert said.endswith(f"The others are in {tmp_path}; the same sweep computes the rest.")
        assert len(list(tmp_path.glob("*.json"))) == 3  # two cells, and whose they are
    if where in ("threads", "processes"):
        executor.shutdown()


def test_what_went_wrong_with_many_cells_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(SweepError) as caught:
        sweep(fails, [{"seed": seed, "unknown": 1} for seed in range(135)], tmp_path)
    said = str(caught.value).splitlines()
    first = ", ".join(f'{{"seed": {seed}, "unknown": 1}}' for seed in range(3))
    assert said[:2] == ["135 of 135 cells have no result.", f"135 such as {first}:"]
    assert sum("unexpected keyword argument" in line for line in said) == 1
    assert len(said) < 10


def test_a_worker_with_other_code_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["of the sweep", "of the worker"])
    monkeypatch.setattr(module, "code_version", lambda _: next(answers))
    with pytest.raises(SweepError, match="the worker has other code"):
        sweep(threads, [{"seed": 1}], tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], r"cells: got {'seed': 1}, expected .* differ"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "differ"),
        ([{"seed": (1, 2)}], r"cells: got {'seed': \(1, 2\)}, expected .* JSON returns"),
        ([{"seed": 1}, {1: 2}], r"cells: got {1: 2}, expected"),
        ([{"seed": float("nan")}], r"cells: got one that JSON does not hold \(Out of range"),
        ([{"seed": torch.ones(1)}], r"cells: got one .* \(Object of type Tensor"),
        ([3], r"cells: got 3, expected dicts"),
    ],
)
def test_bad_cells_are_refused_before_any_work(tmp_path: Path, grid: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep(threads, grid, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("function", [lambda seed: {"seed": seed}, print, "threads", "".join])
def test_a_function_that_workers_cannot_import_is_refused(
    tmp_path: Path, function: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"function: got .*, expected one at the top of a module"):
        sweep(function, [{"seed": 1}], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, log: str) -> None:
    sweep(threads, [{"seed": 1}], tmp_path / "threads")
    before = sorted((tmp_path / "threads").iterdir())
    with pytest.raises(ValueError, match=r"folder: got .* with cells of sweep_cells.threads"):
        sweep(norms, cells(log), tmp_path / "threads")
    assert sorted((tmp_path / "threads").iterdir()) == before
    assert begun(log) == []


# The version of code

OWN = '''\
"""Module."""

import numpy as np
from iclbook.shared import TABLE, half
from iclbook.checks import as_count

FACTOR = 3


def cell(seed):
    """Function."""
    # comment
    return {"x": helper(as_count("seed", seed)) * FACTOR}


def helper(x):
    import iclbook.linear.lazy as lazy

    return np.sqrt(half(x)) + lazy.one


def sibling(seed):
    return {"y": seed}


GRID = {"A-T1": (cell, [1, 2]), "A-T2": (sibling, [])}
'''
SHARED = """\
from iclbook import deep

TABLE = {}
TABLE["a"] = 1
if TABLE:
    OTHER = 2


def half(x):
    return x / deep.two() + TABLE["a"]


def unused(x):
    return x
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as small as can be, in place of iclbook."""
    folder = tmp_path / "iclbook"
    (folder / "linear").mkdir(parents=True)
    texts = {
        "__init__": "",
        "own": OWN,
        "shared": SHARED,
        "checks": "def as_count(a, b): return b\n",
    }
    texts |= {"deep": "def two():\n    return 2\n", "linear/lazy": "one = 1\n"}
    for name, text in (texts | {"linear/__init__": ""}).items():
        (folder / f"{name}.py").write_text(text, "utf8")
    monkeypatch.setattr(module, "PACKAGE", folder)
    return folder


MATTERS = {
    "the function": ("own", '"x"', '"z"'),
    "what it calls": ("own", "np.sqrt", "np.exp"),
    "a constant": ("own", "FACTOR = 3", "FACTOR = 4"),
    "what a name is": ("own", "import numpy as np", "import torch as np"),
    "another module": ("shared", "x / deep", "x * deep"),
    "what is put into its table": ("shared", '"a"] = 1', '"a"] = 2'),
    "what may change its table": ("shared", "OTHER = 2", "TABLE.clear()"),
    "a module of a module": ("deep", "return 2", "return 3"),
    "what is imported late": ("linear/lazy", "one = 1", "one = 2"),
}
MATTERS_NOT = {
    "comment": ("own", "# comment", "# another"),
    "docstring": ("own", '"""Function."""', '"""Mended."""'),
    "line": ("own", "FACTOR = 3", "\nFACTOR = (\n    3\n)"),
    "a sibling": ("own", '"y"', '"z"'),
    "the grid": ("own", "[1, 2]", "[1, 2, 3]"),
    "one more import": ("own", "import TABLE, half", "import TABLE, half, unused"),
    "what it does not use": ("shared", "    return x\n", "    return 2 * x\n"),
    "what only raises": ("checks", "return b", "return int(b)"),
}


@pytest.mark.parametrize("name", MATTERS | MATTERS_NOT)
def test_what_makes_another_version(package: Path, name: str) -> None:
    before = module.version_of(package / "own.py", "cell")
    file, old, new = (MATTERS | MATTERS_NOT)[name]
    text = (package / f"{file}.py").read_text("utf8")
    assert old in text
    (package / f"{file}.py").write_text(text.replace(old, new), "utf8")
    assert (module.version_of(package / "own.py", "cell") != before) == (name in MATTERS)


def test_another_version_is_left_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (today,) = sweep(threads, [{"seed": 1}], tmp_path)
    monkeypatch.setattr(module, "code_version", lambda _: "another")
    (other,) = sweep(threads, [{"seed": 1}], tmp_path)
    assert other != today
    assert today.exists()
    assert json.loads(other.read_text("utf8"))["version"] == "another"


def test_a_function_of_a_notebook(tmp_path: Path) -> None:
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
from iclbook.sweep import sweep
shell = InteractiveShell.instance(history_manager=None)
def run(text):
    shell.run_cell(text).raise_error()
run("from iclbook.sweep import sweep")
for factor in (1, 1, 2):
    run(f"def cell(seed):\\n    return {{{{'x': {{factor}} * seed}}}}")
    run("print(len(sweep(cell, [{{'seed': 1}}, {{'seed': 2}}], {str(tmp_path)!r})))")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["2", "2", "2"], ran.stderr
    assert len(list(tmp_path.glob("*.json"))) == 1 + 2 + 2  # a change of the function is another


# Results


def write_results(package: Path, **changed: str) -> Path:
    folder = package.parent / "book" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    version = module.version_of(package / "own.py", "cell")
    content = {"function": "iclbook.own.cell", "version": version, "cells": []} | changed
    (folder / "A-T1.json").write_text(json.dumps(content), "utf8")
    return folder / "A-T1.json"


def test_results_are_read_while_the_code_is_as_it_was(package: Path) -> None:
    path = write_results(package)
    assert results("A-T1") == json.loads(path.read_text("utf8"))
    (package / "deep.py").write_text("def two():\n    return 3\n", "utf8")
    remedy = "make it with python -m iclbook reproduce A-T1$"
    with pytest.raises(ValueError, match=rf"A-T1.json: .* not by today's code; {remedy}"):
        results("A-T1")


@pytest.mark.parametrize("changed", [{"function": "os.remove"}, {"function": "iclbook.gone.cell"}])
def test_results_of_unknown_code_are_refused(package: Path, changed: dict[str, str]) -> None:
    write_results(package, **changed)
    with pytest.raises(ValueError, match="make it with"):
        results("A-T1")


def test_damaged_and_missing_results_say_how_to_make_them(package: Path) -> None:
    path = write_results(package)
    path.write_text(path.read_text("utf8")[:40], "utf8")
    with pytest.raises(ValueError, match="make it with"):
        results("A-T1")
    remedy = "make it with python -m iclbook reproduce A-T2 --size small"
    with pytest.raises(ValueError, match=remedy):
        results("A-T2-small")


def test_a_package_without_the_book_has_results_of_its_own(package: Path) -> None:
    path = write_results(package)
    (package / "results").mkdir()
    path.rename(package / "results" / path.name)
    path.parent.rmdir()
    assert results("A-T1")["function"] == "iclbook.own.cell"
