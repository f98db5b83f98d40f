"""`python -m iclbook reproduce A-T1`: the experiments behind the heavy rows of the ledger."""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from iclbook.checks import as_count
from iclbook.sweep import PACKAGE, Experiment, SweepError, code_version, machine, sweep, write_whole

PATIENCE = 5.0  # seconds for a scheduler: whoever waits hears within 10 s, imports included


def registry() -> dict[str, Experiment]:
    """The experiments of both wings, by the rows that they stand behind."""
    from iclbook.linear.experiments import HEAVY as LINEAR  # here, as these take seconds
    from iclbook.nonlinear.experiments import HEAVY as NONLINEAR

    return {**LINEAR, **NONLINEAR}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With a message, where something is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m iclbook", description=__doc__)
    add = parser.add_argument
    add("command", choices=["reproduce"], help="run an experiment, or go on with it")
    add("claim", nargs="?", help="a heavy row, such as A-T1")
    add("--list", action="store_true", help="list the heavy rows and do nothing")
    add("--size", choices=["small", "full"], default="full", help="default: full")
    add("--seeds", type=int, help="how many (default: as many as the book takes)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--workers", type=int, help="processes here (default: one per core)")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://10.0.0.1:8786")
    chosen = parser.parse_args(arguments)
    try:
        # First, since a scheduler answers before all else is imported.
        with executor(chosen.scheduler, chosen.workers) as workers:
            known = registry()
            if chosen.list:
                print("\n".join(f"{claim}: {known[claim].says}" for claim in known))
            elif chosen.claim in known:
                reproduce(known, chosen, workers)
            else:
                raise ValueError(f"claim: got {chosen.claim}, expected one of {', '.join(known)}")
    except (OSError, ValueError, SweepError, KeyboardInterrupt) as error:  # the last says nothing
        sys.exit(str(error) or "interrupted; the same command goes on from here")


def executor(scheduler: str | None, workers: int | None) -> Executor:
    """Processes of this machine, or a Dask cluster.

    Raises:
        ValueError: No scheduler answers there, or Dask is not installed.
    """
    if scheduler is None:
        quiet = (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a word
        return ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, quiet)
    try:
        import distributed.comm.core

        # `Client` alone would wait for ever for what takes a call and says nothing.
        secrets = distributed.Security().get_connection_args("client")
        call = distributed.comm.core.connect(scheduler, **secrets)
        asyncio.run(asyncio.wait_for(call, PATIENCE)).abort()
        pool: Executor = distributed.Client(scheduler, timeout=PATIENCE).get_executor()
    except Exception as error:  # noqa: BLE001 (what is no scheduler may answer anything)
        said = f"--scheduler: got {scheduler}, where no Dask scheduler answers ({error!r})."
        raise ValueError(f"{said} Dask comes with pip install 'iclbook[cluster]'") from None
    return pool


def reproduce(known: dict[str, Experiment], chosen: argparse.Namespace, workers: Executor) -> None:
    """Run what is missing of an experiment, and write its results.

    They go to book/results/ in this folder, to results/ if there is no book/; the cells to
    _build/sweeps/. Numbers of a result are written with seven digits, settings as they are.
    """
    experiment = known[chosen.claim]
    seeds = as_count("--seeds", experiment.seeds if chosen.seeds is None else chosen.seeds)
    grid, end = (experiment.full, "") if chosen.size == "full" else (experiment.small, "-small")
    cells = [{**cell, "device": chosen.device} for cell in grid(seeds)]
    code, used = commit(), workers.submit(machine, chosen.device).result()
    folder = Path("_build", "sweeps", experiment.name)
    done = []
    for path, cell in zip(sweep(experiment.function, cells, folder, workers), cells, strict=True):
        record = json.loads(path.read_text(encoding="utf-8"), parse_float=rounded)
        done.append({"cell": cell, "result": record["result"], "seconds": record["seconds"]})
    content = {
        "claims": [claim for claim, one in known.items() if one is experiment],
        "size": chosen.size,
        "seeds": seeds,
        "function": f"{experiment.function.__module__}.{experiment.function.__name__}",
        "version": code_version(experiment.function),
        "commit": code,
        "machine": used,
        "cells": done,
    }
    path = Path("book" if Path("book").is_dir() else "", "results", f"{experiment.name}{end}.json")
    write_whole(path, json.dumps(content).replace('{"cell":', '\n{"cell":'))  # a line for each
    print(path)


def rounded(digits: str) -> float:
    """A number in JSON, to seven significant digits, which keeps the committed files small."""
    return float(f"{float(digits):.7g}")


def commit() -> str | None:
    """The commit of this code, with -dirty if files differ; None where git knows of none."""
    if not (PACKAGE.parent / ".git").exists():  # above it there may be another repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    said = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)  # noqa: S603
    return said.stdout.strip() or None


if __name__ == "__main__":
    main()
