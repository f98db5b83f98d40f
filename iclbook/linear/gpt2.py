"""A GPT-2 on the prompts of paper A, with and without its MLPs (chapter linear/gpt2-mlp)."""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from iclbook.gpt import GPT, fit
from iclbook.linear.task import Prompts, RegressionTask
from iclbook.streams import stream, torch_stream

D, M, SIGMA = 3, 10, 0.5  # Psi = I


def task_with(signal: float) -> RegressionTask:
    """beta_star = (signal, ..., signal), H = Psi = I: three covariates, ten pairs, noise 1/2."""
    return RegressionTask(np.eye(D), np.eye(D), np.full(D, float(signal)), SIGMA, M)


def as_sequence(prompts: Prompts, *, constant: bool = False) -> torch.Tensor:
    """The columns of the paper's token matrix E, (n, M + 1, d + 1): pairs (x; y), then (x; 0).

    Args:
        prompts: n of them.
        constant: whether a token that is the same in all prompts comes first, 1 in a coordinate of
            its own: (n, M + 2, d + 2).
    """
    x = np.concatenate([prompts.X, prompts.x[:, None]], axis=1)
    y = np.pad(prompts.y, [(0, 0), (0, 1)])[:, :, None]
    tokens = np.concatenate([x, y], axis=2)
    if constant:
        tokens = np.pad(tokens, [(0, 0), (1, 0), (0, 1)])
        tokens[:, 0, -1] = 1
    return torch.from_numpy(tokens).float()


def gpt_regression(
    seed: int,
    signal: float,
    *,
    mlp: bool = False,
    depth: int = 2,
    width: int = 32,
    steps: int = 3000,
    batch: int = 64,
    lr: float = 5e-3,
    softmax: bool = True,
    positions: bool = True,
    bias: bool = True,
    own: bool = True,
    constant: bool = False,
    test: int = 20_000,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a GPT on `task_with(signal)` by Adam, and follow its risk.

    The step size rises to `lr` in 100 steps and falls to 0 along half a cosine. Arguments are those
    of `GPT` and `as_sequence`; `test` counts the prompts that the risk is measured on at the
    end; on the way a tenth of them is asked.

    Returns:
        steps: where it was measured, from 0 to the last.
        risk: mean squared error there, noise included.
        weights: number of weights that were trained.

    Source: paper A, Table 1. Its sizes and its training are not known.
    """
    task, rng = task_with(signal), stream(seed, "gpt: prompts")
    model = GPT(
        D + 1 + constant, M + 1 + constant, width=width, depth=depth, heads=2,
        generator=torch_stream(seed, "gpt: start"), mlp=mlp, softmax=softmax, positions=positions,
        bias=bias, own=own,
    ).to(device)  # fmt: skip
    fresh = task.sample(test, stream(seed, "gpt: test"))
    asked, target = as_sequence(fresh, constant=constant).to(device), torch.from_numpy(fresh.target)
    marks, found = set(np.linspace(0, steps, 13).round().astype(int).tolist()), []

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        prompts = task.sample(batch, rng)
        tokens = as_sequence(prompts, constant=constant)
        return tokens.to(device), torch.from_numpy(prompts.target).float().to(device)

    def measure(step: int) -> None:
        if step in marks:
            n = test if step == steps else test // 10  # on the way, a glance is enough
            with torch.no_grad():
                parts = [model(part, last=True)[:, 0] for part in torch.split(asked[:n], 5000)]
            answers = torch.cat(parts).double().cpu()
            found.append(float((answers - target[:n]).square().mean()))

    def rate(step: int) -> float:
        return lr * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, fused=True)
    fit(model, draw, functional.mse_loss, optimiser, rate, steps, measure)
    return {
        "steps": sorted(marks), "risk": found, "weights": sum(weight.numel() for weight in weights)
    }  # fmt: skip
