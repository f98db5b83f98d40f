"""What an answer costs: the trained layer against learners fitted anew for each prompt.

python bench/classical.py [--write book/results/time-classical.md]

Prompts of 20 contexts, one query each. The layer costs the same trained or not, so its weights are
those of the start. All are timed in turn, round after round, so that a busy machine slows all of
them, and the table shows the best of the rounds.
"""

import time
from collections.abc import Callable

import numpy as np
import sklearn
import torch
from report import machine, run

from iclbook.nonlinear import (
    OneLayerTransformer,
    all_tasks,
    orthogonal_patterns,
    sample_prompts,
)
from iclbook.nonlinear.classical import LEARNERS, classical_predictions

N, ROUNDS = 300, 7
PATTERNS = orthogonal_patterns(6, 24, 56, 8, 1.0, np.random.default_rng(0))
PROMPTS = sample_prompts(PATTERNS, all_tasks(6), N, 20, 0.8, np.random.default_rng(1))
LAYER = OneLayerTransformer(56, 8, 200, torch.Generator().manual_seed(0))


@torch.no_grad()
def one_by_one() -> None:
    """The layer, as a user would ask it: a prompt at a time."""
    for n in range(N):
        LAYER(PROMPTS.tokens[n : n + 1], PROMPTS.query[n : n + 1])


@torch.no_grad()
def at_once() -> None:
    """The layer on all prompts in one tensor."""
    LAYER(PROMPTS.tokens, PROMPTS.query)


def neighbour_at_once() -> None:
    """1-NN on all prompts in one array."""
    x, query = PROMPTS.x[:, :-1], PROMPTS.x[:, -1:]
    near = np.square(x - query).sum(axis=2).argmin(axis=1)
    np.take_along_axis(PROMPTS.context_label, near[:, None], axis=1)


def microseconds(way: Callable[[], object]) -> float:
    """Wall time of one query."""
    start = time.perf_counter()
    way()
    return 1e6 * (time.perf_counter() - start) / N


def measure() -> dict[str, float]:
    """Least microseconds per query of each way."""
    ways: dict[str, Callable[[], object]] = {
        "the layer ($m=200$), one by one": one_by_one,
        f"the layer, {N} at once": at_once,
        f"1-NN in NumPy, {N} at once": neighbour_at_once,
    }
    for name in LEARNERS:
        ways[f"{name}, scikit-learn, one by one"] = lambda name=name: classical_predictions(
            PROMPTS, name
        )
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(microseconds(way))
    return {name: min(values) for name, values in times.items()}


def table(results: dict[str, float]) -> str:
    """The Markdown table."""
    lines = ["| way | μs a query |", "|---|---:|"]
    lines += [f"| {name} | {float(f'{value:.2g}'):g} |" for name, value in results.items()]
    where = f"{machine()}, {torch.get_num_threads()} thread(s)"
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    return "\n".join(lines) + f"\n\nMeasured on {where}, {versions}.\n"


if __name__ == "__main__":
    run(__doc__, lambda: table(measure()))
