"""What a training step of the linear Transformer block costs, side by side in one run.

python bench/linear.py [--write book/results/speed-linear.md]

d = 20, batch 512, float64, drawing the prompts included. The ways are timed in turn, round after
round, so that a busy machine slows all of them, and the table shows the best of the rounds.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from report import machine, run

from iclbook.linear import (
    LinearTransformerBlock,
    RegressionTask,
    reduced_form,
    reduced_predictions,
    token_matrix,
    train,
)

D, BATCH, RUNS, ROUNDS = 20, 512, 16, 12


def layer(seed: int) -> LinearTransformerBlock:
    """A block with random weights."""
    return LinearTransformerBlock(D, torch.Generator().manual_seed(seed))


def written_out(task: RegressionTask, steps: int, *, reduced: bool) -> None:
    """Steps of Adam on whole prompts, through the token matrix or the reduced form."""
    block, rng = layer(0), np.random.default_rng(0)
    optimiser = torch.optim.Adam(block.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        p = task.sample(BATCH, rng)
        if reduced:
            form = reduced_form(dict(block.named_parameters()))
            prediction = reduced_predictions(*form, *map(torch.from_numpy, (p.X, p.y, p.x)))
        else:
            prediction = block(token_matrix(p.X, p.y, p.x))
        optimiser.zero_grad()
        (prediction - torch.from_numpy(p.target)).square().mean().backward()
        optimiser.step()


def by_law(task: RegressionTask, steps: int, runs: int = 1) -> None:
    """Steps of the book's own training, one run or several in one tensor."""
    rngs = [np.random.default_rng(seed) for seed in range(runs)]
    blocks = [layer(seed) for seed in range(runs)]
    train(blocks, task, steps=steps, batch=BATCH, lr=1e-3, rngs=rngs, records=2)


def milliseconds(way: Callable[[int], None], steps: int) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    way(steps)
    return 1e3 * (time.perf_counter() - start) / steps


def measure(M: int) -> dict[str, float]:
    """Least milliseconds per step and run of each way."""
    task = RegressionTask.isotropic(d=D, M=M, psi=1 / D, signal=1.0, sigma=0.5)
    ways = {
        "token matrix": (lambda n: written_out(task, n, reduced=False), 8, 1),
        "reduced form, whole prompts": (lambda n: written_out(task, n, reduced=True), 40, 1),
        "reduced form, exact law": (lambda n: by_law(task, n), 160, 1),
        f"the same, {RUNS} runs in one tensor": (lambda n: by_law(task, n, RUNS), 160, RUNS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (way, steps, runs) in ways.items():
            times[name].append(milliseconds(way, steps) / runs)
    return {name: min(values) for name, values in times.items()}


def table(results: dict[int, dict[str, float]]) -> str:
    """The Markdown table."""
    lengths = list(results)
    head = "".join(f" ms a step, $M={M}$ | times faster |" for M in lengths)
    lines = [f"| way |{head}", "|---|" + "---:|---:|" * len(lengths)]
    for name in results[lengths[0]]:
        cells = "".join(
            f" {results[M][name]:.2f} | {results[M]['token matrix'] / results[M][name]:.0f} |"
            for M in lengths
        )
        lines.append(f"| {name} |{cells}")
    one, many = "reduced form, exact law", f"the same, {RUNS} runs in one tensor"
    gains = " and ".join(f"{results[M][one] / results[M][many]:.1f} ($M={M}$)" for M in lengths)
    loop = f"{RUNS} runs in one tensor are faster than a loop over them by {gains}."
    where = f"{machine()}, {torch.get_num_threads()} thread(s) of torch"
    return "\n".join(lines) + f"\n\n{loop} Measured on {where}, torch {torch.__version__}.\n"


if __name__ == "__main__":
    run(__doc__, lambda: table({M: measure(M) for M in (20, 80)}))
