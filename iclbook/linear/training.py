"""Training of the linear layers on prompts (chapter linear/approximation-gap)."""

from dataclasses import dataclass

import numpy as np
import torch

from iclbook.checks import Array, as_count, as_number
from iclbook.linear.layers import LinearSelfAttention, LinearTransformerBlock, token_matrix
from iclbook.linear.risk import lsa_risk, ltb_risk
from iclbook.linear.task import RegressionTask


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a training run was at each recorded step."""

    steps: Array
    """Number of steps taken, (k,), from 0 to the last."""
    risk: Array
    """Exact population risk of the weights at that step, the floor sigma^2 included, (k,)."""


def exact_risk(layer: LinearSelfAttention, task: RegressionTask) -> float:
    """Exact population risk of a layer's weights, through its reduced form."""
    if isinstance(layer, LinearTransformerBlock):
        return ltb_risk(task, *layer.reduced())
    return lsa_risk(task, *layer.reduced())


def train(
    layer: LinearSelfAttention,
    task: RegressionTask,
    *,
    steps: int,
    batch: int,
    lr: float,
    rng: np.random.Generator,
    records: int = 60,
) -> Trajectory:
    """Train `layer` in place by Adam on squared error, a fresh batch of prompts at each step.

    The step size follows half a cosine from `lr` to 0, so that the weights settle instead of
    fluctuating around the optimum.

    Args:
        layer: its current weights are the start.
        task: the distribution of prompts.
        steps: number of steps, at least 1.
        batch: prompts per step, at least 1.
        lr: first step size of Adam, positive.
        rng: draws the prompts.
        records: how many times the exact risk is recorded, evenly over the run; at least 2.

    Raises:
        ValueError: counts below their least, lr not positive, or a layer of another dimension.
        FloatingPointError: the loss or the risk is no longer finite; says at which step.
    """
    steps, batch = as_count("steps", steps), as_count("batch", batch)
    records = as_count("records", records, least=2)
    if as_number("lr", lr) <= 0:
        raise ValueError(f"lr: got {lr}, expected a positive step size")
    if layer.d != task.d:
        raise ValueError(f"layer: got one for d = {layer.d}, expected d = {task.d} as in the task")
    optimiser = torch.optim.Adam(layer.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    marks = np.unique(np.linspace(0, steps, records).round().astype(int))
    risk = []
    for step in range(steps + 1):
        if step in marks:
            risk.append(_risk_at(step, layer, task))
        if step == steps:
            break
        prompts = task.sample(batch, rng)
        E = token_matrix(prompts.X, prompts.y, prompts.x)
        loss = (layer(E) - torch.from_numpy(prompts.target)).square().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"training diverged: the loss is {loss.item()} at step {step}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Trajectory(steps=marks.astype(np.float64), risk=np.array(risk))


def _risk_at(step: int, layer: LinearSelfAttention, task: RegressionTask) -> float:
    """`exact_risk`; a FloatingPointError if it is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = all(np.isfinite(part).all() for part in layer.reduced())
        risk = exact_risk(layer, task) if finite else np.nan
    if not np.isfinite(risk):
        raise FloatingPointError(f"training diverged: the risk is {risk} at step {step}")
    return risk
