"""What training of the nonlinear wing costs, against other ways to do the same: a markdown table.

All contenders run interleaved in rounds on one thread, on the same machine and in float32, each
drawing its own prompts; a row is the median over the rounds.

python bench/nonlinear.py [--write book/results/speed-nonlinear.md]
"""

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from report import arguments, machine, publish
from torch import Tensor, nn

from iclbook.nonlinear import OneLayerTransformer, draw_world, hinge_loss, sample_prompts, train

DX, DY, NEURONS, L, BATCH, ALPHA, LR = 56, 8, 200, 20, 256, 0.8, 0.5
RUNS = 16
WORLD = draw_world(np.random.default_rng(0), dX=DX, dY=DY)
ONE = sample_prompts(WORLD.patterns, WORLD.held_out, 1, L, ALPHA, np.random.default_rng(0))


class EncoderLayer(nn.Module):
    """torch.nn.TransformerEncoderLayer over contexts and query, with the paper's output weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            DX + DY, nhead=1, dim_feedforward=NEURONS, dropout=0.0, batch_first=True
        )
        self.read = nn.Linear(DX + DY, 1)

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """One number for each prompt, read at the query."""
        return self.read(self.layer(torch.cat([tokens, query[:, None]], dim=1))[:, -1])[:, 0]


def model(seed: int) -> OneLayerTransformer:
    """The model of the paper at its start."""
    generator = torch.Generator().manual_seed(seed)
    return OneLayerTransformer(DX, DY, NEURONS, generator, dtype=torch.float32)


def by_autograd(module: nn.Module, steps: int) -> None:
    """Plain minibatch SGD on dense tokens."""
    rng = np.random.default_rng(1)
    optimiser = torch.optim.SGD(module.parameters(), lr=LR if module is not ENCODER else 0.01)
    for _ in range(steps):
        P = sample_prompts(WORLD.patterns, WORLD.trained, BATCH, L, ALPHA, rng)
        tokens, query = (torch.tensor(x, dtype=torch.float32) for x in (P.tokens, P.query))
        optimiser.zero_grad()
        hinge_loss(module(tokens, query), P.label).backward()
        optimiser.step()


def by_train(models: list[OneLayerTransformer], steps: int) -> None:
    """The trainer of this package."""
    rngs = [np.random.default_rng(seed) for seed in range(len(models))]
    train(
        models, WORLD, steps=steps, batch=BATCH, l=L, alpha=ALPHA, lr=LR, rngs=rngs,
        evaluation=[ONE] * len(models), records=2,
    )  # fmt: skip


ENCODER = EncoderLayer()


def contenders(start: list[OneLayerTransformer], steps: int) -> dict[str, Callable[[], float]]:
    """Name -> a function that measures milliseconds per step and run, from the same weights."""

    def measured(
        work: Callable[[list[OneLayerTransformer], int], None], runs: int, n: int
    ) -> float:
        models = copy.deepcopy(start[:runs])
        begun = time.process_time()
        work(models, n)
        return (time.process_time() - begun) * 1000 / n / runs

    def one_by_one(models: list[OneLayerTransformer], n: int) -> None:
        for one in models:
            by_train([one], n)

    few = max(steps // 8, 2)
    return {
        "encoder layer": lambda: measured(lambda _, n: by_autograd(ENCODER, n), 1, few),
        "readable model, autograd": lambda: measured(lambda m, n: by_autograd(m[0], n), 1, few),
        "train, 1 run": lambda: measured(by_train, 1, steps),
        f"train, {RUNS} runs one by one": lambda: measured(one_by_one, RUNS, few),
        f"train, {RUNS} runs": lambda: measured(by_train, RUNS, few),
    }


def main() -> None:
    """Measure, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160, help="of the trainer, in each round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = [model(seed) for seed in range(RUNS)]
    phases = {}
    for phase in ("on the plateau", "after it"):
        if phase == "after it":
            by_train(start, 500)
        tried = contenders(start, options.steps)
        rounds = [{name: run() for name, run in tried.items()} for _ in range(options.rounds)]
        phases[phase] = {name: statistics.median(r[name] for r in rounds) for name in tried}
    publish(table(phases), options.write)


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def table(phases: dict[str, dict[str, float]]) -> str:
    """The Markdown table: CPU milliseconds per step and run, and how often faster than others."""
    lines = [
        "| phase | way | ms | than encoder layer | than readable model | than one by one |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for phase, cost in phases.items():
        others = "encoder layer", "readable model, autograd", f"train, {RUNS} runs one by one"
        for name, ms in cost.items():
            ratios = " | ".join(_short(cost[other] / ms) for other in others)
            lines.append(f"| {phase} | {name} | {ms:.2f} | {ratios} |")
    where = f"{machine()}, torch {torch.__version__}"
    note = "CPU milliseconds per step and run, one thread, drawing the prompts included"
    return "\n".join(lines) + f"\n\n{note}; then how many times faster. Measured on {where}.\n"


if __name__ == "__main__":
    main()
