"""Sweeps: one function over many settings and seeds, here or on a cluster (chapter running).

Each cell of a sweep writes a file of its own, whole or not at all, named by a hash of the function,
its code and the cell. So a sweep that was killed goes on where it stopped, results of other code
are never mistaken for today's, and where a cell runs does not matter.
"""

import ast
import functools
import hashlib
import inspect
import json
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits
from tqdm import tqdm

Cell = dict[str, Any]  # settings by name, the seed among them
Function = Callable[..., dict[str, Any]]

PACKAGE = Path(__file__).parent
PACKAGES = ("numpy", "scikit-learn", "scipy", "torch")  # what numbers come from
# Modules that raise, draw, print or run others: a change of theirs changes no number.
SILENT = {f"iclbook.{name}" for name in ("checks", "claims", "figures", "notebook", "sweep")}


class Experiment(NamedTuple):
    """A sweep behind heavy rows of the ledger.

    Attributes:
        name: The row that its results are named after, one of those that it stands behind.
        says: What it does, in a few words.
        function: Computes a cell; takes `device` besides the settings.
        small: Cells that show in a minute that all works, for a number of seeds.
        full: Cells of the book's results, for a number of seeds.
        seeds: How many seeds the book takes.
    """

    name: str
    says: str
    function: Function
    small: Callable[[int], list[Cell]]
    full: Callable[[int], list[Cell]]
    seeds: int


class SweepError(RuntimeError):
    """Cells of a sweep have no result.

    Attributes:
        failed: Those cells, by what went wrong with them.
    """

    def __init__(self, failed: dict[str, list[Cell]], total: int, folder: Path) -> None:
        self.failed = failed
        said = f"{sum(map(len, failed.values()))} of {total} cells have no result."
        for error, cells in failed.items():
            said += f"\n{len(cells)} such as {', '.join(map(json.dumps, cells[:3]))}:\n{error}"
        super().__init__(f"{said}\nThe others are in {folder}; the same sweep computes the rest.")


def sweep(
    function: Function, cells: Sequence[Cell], folder: str | Path, executor: Executor | None = None
) -> list[Path]:
    """Compute the cells that have no file in a folder yet.

    A cell runs on one thread, so that its numbers do not depend on where it runs. In a terminal, a
    bar shows the remaining time. Interrupted, a sweep begins no further cell; those that run now
    are kept like the others once they end.

    Args:
        function: Called as ``function(**cell)``; stands at the top of a module, or of a notebook if
            there is no executor. Returns a dict of what JSON holds, of finite numbers.
        cells: Settings, all different: numbers, strings, booleans, None, lists and dicts of them.
        folder: Belongs to this function, made if need be. Workers elsewhere must see the same one.
        executor: Of threads, of processes, or of a Dask cluster (``Client.get_executor()``);
            without one the cells are computed here, one after another, on a thread of their own.

    Returns:
        A JSON file for each cell, in their order, with ``cell``, ``result``, ``version`` and
        ``seconds``.

    Raises:
        ValueError: A function within another, equal cells, a cell that JSON does not give back as
            it is, a folder with another function's cells. Nothing was computed then.
        SweepError: Cells failed or were lost. All others are finished.
    """
    if not inspect.isfunction(function) or not function.__qualname__.isidentifier():
        raise ValueError(f"function: got {function!r}, expected one at the top of a module")
    try:
        texts = [json.dumps(cell, sort_keys=True, allow_nan=False) for cell in cells]
    except (TypeError, ValueError) as error:
        raise ValueError(f"cells: got one that JSON does not hold ({error})") from None
    for cell, text in zip(cells, texts, strict=True):
        if texts.count(text) > 1 or json.loads(text) != cell or not isinstance(cell, dict):
            raise ValueError(f"cells: got {cell!r}, expected dicts that differ and JSON returns")
    name, version = f"{function.__module__}.{function.__qualname__}", code_version(function)
    folder = Path(folder).resolve()
    if (owner := _read(folder / "sweep.json").get("function", name)) != name:
        raise ValueError(f"folder: got {folder} with cells of {owner}, expected those of {name}")
    write_whole(folder / "sweep.json", json.dumps({"function": name}))
    paths = [folder / f"{_digest(json.dumps([name, version, text]))}.json" for text in texts]
    jobs = [job for job in zip(cells, paths, strict=True) if not _is_finished(*job)]
    import torch  # here, because chapters that read results should not wait for this import

    threads, failed, n = torch.get_num_threads(), dict[str, list[Cell]](), len(cells)
    with threadpool_limits(1), tqdm(total=n, initial=n - len(jobs), disable=None) as bar:
        pool, run = executor or ThreadPoolExecutor(1), uuid.uuid4().hex
        futures = {pool.submit(_compute, function, *job, version, run): job[0] for job in jobs}
        try:
            for future in as_completed(futures):
                bar.update()
                lost = "cancelled" if future.cancelled() else future.exception()
                if lost:
                    failed.setdefault(str(lost), []).append(futures[future])
        finally:
            for future in futures:
                future.cancel()
            torch.set_num_threads(threads)
    if failed:
        raise SweepError(failed, n, folder)
    return paths


def _compute(function: Function, cell: Cell, path: Path, version: str, run: str) -> Path:  # noqa: ARG001
    """Compute a cell in a worker and write its file, which is all that goes back.

    A cluster asks for a cell again if it lost the worker that had finished it. `run` tells one
    sweep's calls from the next one's: to equal calls Dask may give the answer that it remembers.
    """
    import torch  # here, because chapters that read results should not wait for this import

    began = time.perf_counter()
    try:
        if _is_finished(cell, path):
            return path
        torch.set_num_threads(1)
        threadpool_limits(1)  # for good: a worker may be running other cells on other threads
        # The code of a notebook comes with the call, and has no file where a worker is.
        if function.__module__ != "__main__" and code_version(function) != version:
            raise RuntimeError("the worker has other code than the process that sent it the cell")
        record: dict[str, Any] = {"cell": cell, "result": function(**cell), "version": version}
        record["seconds"] = round(time.perf_counter() - began, 3)
        write_whole(path, json.dumps(record, allow_nan=False))
    except (Exception, SystemExit):  # noqa: BLE001 (whatever it is, the others go on)
        # As a text, since not every exception survives the way back from another process.
        raise RuntimeError(traceback.format_exc(limit=-1).strip()) from None
    return path


# Files


def write_whole(path: Path, text: str) -> None:
    """Write a file so that others see the old one or the new one whole, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """A dict in JSON; empty if there is none, or if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_finished(cell: Cell, path: Path) -> bool:
    """Whether a file holds the result of a cell."""
    found = _read(path)
    return found.get("cell") == cell and "result" in found


# The version of code


@functools.cache  # what was imported does not change when its file does
def code_version(function: Function) -> str:
    """Hash of the code that a function's numbers come from, without comments and docstrings.

    That is what it uses of its own module and of iclbook, directly or through others, but for
    modules that change no number. Another experiment in the same file, or a larger grid, leaves it
    as it is, and so does another version of Python. In a notebook, where it cannot be seen what a
    function uses, it is the function and all of iclbook.
    """
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    if file:
        return version_of(Path(file), function.__name__)
    whole = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    return _digest(inspect.getsource(function) + "".join(whole))


def version_of(path: Path | None, name: str) -> str:
    """The same for a function of a file, which is not imported."""
    todo, seen, used = [(path, name)], set[tuple[Path, str]](), set[str]()
    while todo:
        file, wanted = todo.pop()
        if file is None or (file, wanted) in seen:
            continue
        seen.add((file, wanted))
        matching = [one for names, one in _statements(file.read_bytes()) if wanted in names]
        for statement in matching:
            used.add(f"{file.stem} {_bare(statement)}")
            for node in ast.walk(statement):
                if isinstance(node, ast.Name):
                    todo.append((file, node.id))
                elif isinstance(node, ast.Import):
                    todo += [(_path(alias.name), "*") for alias in node.names]
                elif isinstance(node, ast.ImportFrom):  # of a name or of a module
                    todo += [(_path(f"{node.module}"), alias.name) for alias in node.names]
                    todo += [(_path(f"{node.module}.{alias.name}"), "*") for alias in node.names]
    return _digest(json.dumps(sorted(used)))


def _path(module: str) -> Path | None:
    """The file of a module of iclbook that can change a number; None for any other."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return file if file.is_file() and PACKAGE in file.parents and module not in SILENT else None


@functools.cache
def _statements(source: bytes) -> list[tuple[set[str], ast.stmt]]:
    """The statements at the top of a file, each with the names that it defines, and *.

    An import of several names counts as several.
    """
    found: list[tuple[set[str], ast.stmt]] = []
    for one in ast.parse(source).body:
        parts: list[ast.stmt] = [one]
        if isinstance(one, ast.ImportFrom):
            parts = [ast.ImportFrom(one.module, [alias], one.level) for alias in one.names]
        found += [(_names(part) | {"*"}, part) for part in parts]
    return found


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement defines; all that it names if it is of another kind than these."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    parts = statement.targets if isinstance(statement, ast.Assign) else [statement]
    return {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}


def _bare(node: object) -> object:
    """Syntax as lists, without docstrings and other constants that stand alone.

    What is empty is left out: there `ast.dump` differs from one Python to the next.
    """
    if isinstance(node, list):
        expressions = [one for one in node if isinstance(one, ast.Expr)]
        alone = [one for one in expressions if isinstance(one.value, ast.Constant)]
        return [_bare(one) for one in node if one not in alone]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [[name, _bare(value)] for name, value in ast.iter_fields(node) if value is not None]
    return [type(node).__name__, *(field for field in fields if field[1])]


def _digest(text: str) -> str:
    """Hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


# Results


def results(name: str) -> dict[str, Any]:
    """What an experiment of the book found, from the file that comes with the book.

    Args:
        name: Such as ``A-T1``, or ``A-T1-small`` for the small size.

    Returns:
        What `python -m iclbook reproduce` wrote; ``cells`` is a list with ``cell``, ``result`` and
        ``seconds`` of each.

    Raises:
        ValueError: There is no such file, it is damaged, or other code than today's made it. It
            says how to make it.
    """
    folder = PACKAGE.parent / "book" / "results"
    path = (folder if folder.is_dir() else PACKAGE / "results") / f"{name}.json"
    found = _read(path)
    module, _, function = found.get("function", "").rpartition(".")
    if found.get("version") != version_of(_path(module), function):
        remedy = f"python -m iclbook reproduce {name.replace('-small', ' --size small')}"
        raise ValueError(f"{path}: not there, or not by today's code; make it with {remedy}")
    return found


def machine(device: str) -> dict[str, Any]:
    """What the process that is asked computes with: versions and hardware.

    Raises:
        ValueError: It has no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: got cuda, expected a GPU where the cells are computed")
    linux = Path("/proc/cpuinfo")  # elsewhere the system has but a vague name for its processor
    text = linux.read_text(encoding="utf-8") if linux.exists() else ""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "processor": text.partition("model name\t: ")[2].split("\n")[0] or platform.processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }
