"""What a training step of the linear Transformer block costs, side by side in one run.

python bench/linear.py [--write book/results/speed-linear.md]

d = 20, batch 512, drawing the prompts included. The ways are timed in turn, round after round, so
that a busy machine slows all of them, and the table shows the best of the rounds. The first way is
how public code for in-context regression by linear attention is written (of paper A's relatives,
the code of Ahn, Cheng, Daneshmand and Sra, NeurIPS 2023): single precision, two merged d x d blocks
P and Q put into (d+1) x (d+1) matrices, all of the attention matrix. All others are the book's, in
double precision.
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

D, BATCH, RUNS, ROUNDS = 20, 512, 16, 24
PUBLIC, ONE = "as public code writes it, single precision", "reduced form, exact law"
MANY = f"the same, {RUNS} runs in one array"


def layer(seed: int) -> LinearTransformerBlock:
    """A block with random weights."""
    return LinearTransformerBlock(D, torch.Generator().manual_seed(seed))


def bordered(block: torch.Tensor, corner: float) -> torch.Tensor:
    """A (d, d) block as the corner of a (d+1, d+1) matrix, differentiable."""
    full = torch.nn.functional.pad(block, (0, 1, 0, 1))
    full[D, D] = corner
    return full


def public(task: RegressionTask, steps: int) -> None:
    """Steps of Adam on tokens Z with rows (x, y): Z + (Z Q Z^T) mask (Z P^T) / M, last entry."""
    P, Q = (torch.nn.Parameter(0.1 * torch.randn(D, D)) for _ in range(2))
    optimiser = torch.optim.Adam([P, Q], lr=1e-3)
    mask = torch.eye(task.M + 1)
    mask[-1, -1] = 0.0
    shared = torch.tensor(task.beta_star, dtype=torch.float32)
    root = torch.tensor(task.root_Psi, dtype=torch.float32)
    for _ in range(steps):
        beta = shared + torch.randn(BATCH, D) @ root
        X = torch.randn(BATCH, task.M + 1, D)
        y = torch.einsum("nmd,nd->nm", X, beta) + task.sigma * torch.randn(BATCH, task.M + 1)
        Z = torch.cat([X, y[:, :, None]], dim=2)
        Z[:, -1, -1] = 0.0
        attention = torch.einsum("nia,ab,njb->nij", Z, bordered(Q, 0.0), Z)
        values = torch.einsum("ab,nib->nia", bordered(P, 1.0), Z)
        output = Z + torch.einsum("nij,jk,nka->nia", attention, mask, values) / task.M
        optimiser.zero_grad()
        (output[:, -1, -1] + y[:, -1]).square().mean().backward()
        optimiser.step()


def written_out(task: RegressionTask, steps: int, *, reduced: bool) -> None:
    """Steps of Adam on whole prompts, through the token matrix or the reduced form."""
    block, rng = layer(0), np.random.default_rng(0)
    optimiser = torch.optim.Adam(block.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        p = task.sample(BATCH, rng)
        if reduced:
            form = reduced_form(dict(block.named_parameters()))
            prediction = reduced_predictions(*form, p.X, p.y, p.x)
        else:
            prediction = block(token_matrix(p.X, p.y, p.x))
        optimiser.zero_grad()
        (prediction - torch.from_numpy(p.target)).square().mean().backward()
        optimiser.step()


def by_law(task: RegressionTask, steps: int, runs: int = 1) -> None:
    """Steps of the book's own training, one run or several in one array."""
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
    ways: dict[str, tuple[Callable[[int], None], int, int]] = {
        PUBLIC: (lambda n: public(task, n), 4, 1),
        "the paper's layer, six matrices": (lambda n: written_out(task, n, reduced=False), 4, 1),
        "reduced form, whole prompts": (lambda n: written_out(task, n, reduced=True), 16, 1),
        ONE: (lambda n: by_law(task, n), 96, 1),
        MANY: (lambda n: by_law(task, n, RUNS), 16, RUNS),
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
            f" {results[M][name]:.2f} | {results[M][PUBLIC] / results[M][name]:.1f} |"
            for M in lengths
        )
        lines.append(f"| {name} |{cells}")
    gains = " and ".join(f"{results[M][ONE] / results[M][MANY]:.1f} ($M={M}$)" for M in lengths)
    loop = f"{RUNS} runs in one array are faster than a loop over them by {gains}."
    precision = "The first row computes in single precision, the others in double."
    where = f"{machine()}, {torch.get_num_threads()} thread(s) of torch"
    notes = f"{precision} {loop} Measured on {where}, torch {torch.__version__}."
    return "\n".join(lines) + f"\n\n{notes}\n"


if __name__ == "__main__":
    run(__doc__, lambda: table({M: measure(M) for M in (20, 80)}))
