"""Functions of sweeps, in a module that the workers of a test can import."""

import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from iclbook.streams import stream


def begun(log: str) -> list[int]:
    """Seeds of the cells that were begun, sorted, once for each time."""
    return sorted(int(path.name.split("-")[0]) for path in Path(log).iterdir())


def begin(seed: int, log: str) -> None:
    Path(log, f"{seed}-{uuid.uuid4().hex}").touch()


def norms(seed: int, log: str, gate: str = "", dies: bool = False) -> dict[str, Any]:
    """Sums that round differently on several threads.

    Seed 2 waits until there is a file `gate`, or kills its process the first time.
    """
    begin(seed, log)
    while seed == 2 and gate and not Path(gate).exists():
        time.sleep(0.01)
    if seed == 2 and dies and begun(log).count(2) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    x = stream(seed, "x").standard_normal((300, 300))
    return {"seed": seed, "norms": np.linalg.norm(x @ x, axis=0)[:3].tolist()}


def threads(seed: int) -> dict[str, Any]:
    return {"seed": seed, "torch": sys.modules["torch"].get_num_threads()}


class UnpicklableError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fails(seed: int) -> dict[str, Any]:
    if seed == 1:
        raise UnpicklableError(3, 4)
    if seed == 2:
        return {"loss": float("nan")}
    if seed == 3:
        raise SystemExit("enough")
    return {"loss": 0.5}


def fails_on(seed: int, device: str) -> dict[str, Any]:
    return fails(seed) | {"device": device}


def waits(device: str, seed: int, log: str, gate: str) -> dict[str, Any]:
    return norms(seed, log, gate) | {"device": device}


def double(seed: int, device: str, width: float = 1.0) -> dict[str, Any]:
    """Doubles, nothing of iclbook."""
    return {"device": device, "twice": 2 * seed * width, "third": seed / 3}
