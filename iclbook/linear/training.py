"""Training of the linear layers on prompts (chapter linear/approximation-gap)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from iclbook.checks import Array, as_count, as_positive
from iclbook.linear.law import ShortPrompts, sample_short, short_predictions
from iclbook.linear.layers import LinearSelfAttention, reduced_form
from iclbook.linear.risk import ltb_risk
from iclbook.linear.task import RegressionTask

_CHUNK = 8  # steps whose prompts are drawn at once


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What runs side by side were at each recorded step."""

    steps: Array
    """Number of steps taken, (k,), from 0 to the last."""
    risk: Array
    """Exact population risk of each run's weights there, the floor sigma^2 included, (runs, k)."""


def train(
    layers: Sequence[LinearSelfAttention],
    task: RegressionTask,
    *,
    steps: int,
    batch: int,
    lr: float,
    rngs: Sequence[np.random.Generator],
    records: int = 60,
) -> Trajectory:
    """Train layers in place by Adam on squared error, fresh prompts at each step.

    The runs are independent: each has its own weights and its own prompts. They share one batched
    tensor. The predictions go through the reduced form <u + W G v, x> and the exact law of G v, so
    a step costs the same for prompts of any length. The step size follows half a cosine from `lr`
    to 0, so that the weights settle instead of fluctuating around the optimum.

    Args:
        layers: one per run, all of one kind; their weights are the starts, and are left trained.
        task: the distribution of prompts.
        steps: number of steps, at least 1.
        batch: prompts per step and run, at least 1.
        lr: first step size of Adam, positive.
        rngs: one per run, draws its prompts.
        records: how many times the exact risk is recorded, evenly over the run; at least 2.

    Raises:
        ValueError: counts below their least, lr not positive, no layers, layers of several kinds or
            of another dimension, or not one generator per layer.
        FloatingPointError: a loss or a risk is no longer finite; says in which run, at which step.
    """
    steps, batch = as_count("steps", steps), as_count("batch", batch)
    records = as_count("records", records, least=2)
    as_positive("lr", lr, "step size")
    _check_runs(layers, task, rngs)
    names = [name for name, _ in layers[0].named_parameters()]
    weights = {
        name: torch.stack([layer.get_parameter(name).detach() for layer in layers]).requires_grad_()
        for name in names
    }
    optimiser = torch.optim.Adam(weights.values(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    marks = np.unique(np.linspace(0, steps, records).round().astype(int))
    risk = []
    prompts = _prompts(task, steps, batch, rngs)
    for step in range(steps + 1):
        if step in marks:
            risk.append(_exact_risks(task, weights, step))
        if step == steps:
            break
        *prompt, target = next(prompts)
        predictions = short_predictions(task, reduced_form(weights), *prompt)
        loss = (predictions - target).square().mean(dim=1)
        if not torch.isfinite(loss).all():
            run = int(torch.isfinite(loss).logical_not().nonzero()[0])
            raise FloatingPointError(
                f"training diverged: the loss of run {run} is {loss[run].item()} at step {step}"
            )
        optimiser.zero_grad()
        loss.sum().backward()  # the runs share no weight: each gets the gradient of its own loss
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        for run, layer in enumerate(layers):
            for name in names:
                layer.get_parameter(name).copy_(weights[name][run])
    return Trajectory(steps=marks.astype(np.float64), risk=np.array(risk).T)


def _check_runs(
    layers: Sequence[LinearSelfAttention],
    task: RegressionTask,
    rngs: Sequence[np.random.Generator],
) -> None:
    if not layers or len({type(layer) for layer in layers}) > 1:
        kinds = sorted({type(layer).__name__ for layer in layers})
        raise ValueError(f"layers: got kinds {kinds}, expected at least one layer, all of one kind")
    for layer in layers:
        if layer.d != task.d:
            raise ValueError(
                f"layers: got one for d = {layer.d}, expected d = {task.d}, the task's"
            )
    different = len({id(layer) for layer in layers})
    if different < len(layers):
        raise ValueError(
            f"layers: got {different} different ones in {len(layers)}, expected one per run"
        )
    if len(rngs) != len(layers) or len({id(rng) for rng in rngs}) < len(rngs):
        raise ValueError(
            f"rngs: got {len({id(rng) for rng in rngs})} generators, expected one of its own for "
            f"each of the {len(layers)} layers"
        )


def _prompts(
    task: RegressionTask, steps: int, batch: int, rngs: Sequence[np.random.Generator]
) -> Iterator[list[Tensor]]:
    """The fields of ShortPrompts of all runs for each step, (runs, batch, ...)."""

    def draw(start: int) -> list[Tensor]:
        now = min(_CHUNK, steps - start)
        drawn = [sample_short(task, now * batch, rng) for rng in rngs]
        stacked = []
        for field in fields(ShortPrompts):
            parts = [getattr(prompts, field.name) for prompts in drawn]
            parts = [part.reshape(now, batch, *part.shape[1:]) for part in parts]
            stacked.append(torch.from_numpy(np.stack(parts, axis=1)))
        return stacked

    # NumPy draws without Python's lock: the next chunk is drawn while this one is trained on.
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(draw, 0)
        for start in range(0, steps, _CHUNK):
            now = ahead.result()
            if start + _CHUNK < steps:
                ahead = pool.submit(draw, start + _CHUNK)
            for step in range(len(now[0])):
                yield [part[step] for part in now]


def _exact_risks(task: RegressionTask, weights: dict[str, Tensor], step: int) -> list[float]:
    with torch.no_grad():
        forms = [part.numpy() for part in reduced_form(weights)]
    risks = []
    for run, (u, v, W) in enumerate(zip(*forms, strict=True)):
        with np.errstate(over="ignore", invalid="ignore"):
            finite = all(np.isfinite(part).all() for part in (u, v, W))
            risk = ltb_risk(task, u, v, W) if finite else np.nan
        if not np.isfinite(risk):
            raise FloatingPointError(
                f"training diverged: the risk of run {run} is {risk} at step {step}"
            )
        risks.append(risk)
    return risks
