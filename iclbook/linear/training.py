"""Training of the linear layers, on prompts and on the exact risk (chapter linear/gd-beta)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from iclbook.checks import Array, as_count, as_generator, as_positive
from iclbook.linear.law import sample_short, short_slopes
from iclbook.linear.layers import LinearSelfAttention
from iclbook.linear.risk import Form, Standard, exact_slopes, standardise
from iclbook.linear.task import RegressionTask

_CHUNK = 8  # steps whose prompts are drawn at once
Layers = Sequence[LinearSelfAttention]
_Slopes = Callable[[Array, Array, Array], tuple[Array, Form]]  # losses (runs,) and their slopes


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What runs side by side were at each recorded step.

    Attributes:
        steps: Number of steps taken, (k,), from 0 to the last.
        risk: Exact population risk of each run's weights there, the floor sigma^2 included, (runs,
            k).
        u: The layers in their reduced form <u + W G v, x>: u, (runs, k, d), 0 for LSA.
        v: (runs, k, d+1).
        W: (runs, k, d, d+1).
    """

    steps: NDArray[np.int64]
    risk: Array
    u: Array
    v: Array
    W: Array

    @property
    def Gamma(self) -> Array:
        """The gradient step that the weights imply, (runs, k, d, d); the start is u."""
        return self.v[..., -1:, None] * self.W[..., :-1]


def train(
    layers: Layers,
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
    array. The predictions go through the reduced form <u + W G v, x> and the exact law of G v, so
    a step costs the same for prompts of any length. Gradients are written by hand; the tests hold
    them against autograd through the layer. The step size follows half a cosine from `lr` to 0, so
    that the weights settle instead of fluctuating around the optimum.

    The same seeds give the same weights, bit for bit. Prompts are drawn 8 steps at a time, one
    `sample_short` a run, and that is part of the promise: with another number of steps in a chunk
    the same generator gives other prompts.

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
    _check_layers(layers, task.d)
    _check_own("rngs", [as_generator("rngs", rng) for rng in rngs], len(layers))
    std, prompts = standardise(task), _prompts(task, steps, batch, rngs)

    def slopes(u: Array, v: Array, W: Array) -> tuple[Array, Form]:
        return short_slopes(std, u, v, W, next(prompts))

    return _adam(layers, std, slopes, steps, lr, records)


def descend(
    layers: Layers, tasks: Sequence[RegressionTask], *, steps: int, lr: float, records: int = 60
) -> Trajectory:
    """Train layers in place by Adam on the exact risk: `train` with endless batches.

    No prompt is drawn, so nothing hides where a run ends: `ltb_gradient` there says whether it has
    arrived, `ltb_hessian` whether at a minimum.

    Args:
        layers: one per run, all of one kind; their weights are the starts, and are left trained.
        tasks: one per run, all of the layers' dimension.
        steps: number of steps, at least 1.
        lr: first step size of Adam, positive; it falls to 0 along half a cosine.
        records: how many times the run is recorded, evenly; at least 2.

    Raises:
        ValueError: counts below their least, lr not positive, no layers, layers of several kinds or
            of another dimension, or not one task per layer.
        FloatingPointError: a risk is no longer finite; says in which run, at which step.
    """
    if not tasks or len(tasks) != len(layers):
        raise ValueError(f"tasks: got {len(tasks)}, expected one for each of {len(layers)} layers")
    for task in tasks:
        _check_layers(layers, task.d)
    std = Standard(*map(np.stack, zip(*map(standardise, tasks), strict=True)))
    return _adam(layers, std, partial(exact_slopes, std), as_count("steps", steps), lr, records)


def _adam(
    layers: Layers, std: Standard, slopes: _Slopes, steps: int, lr: float, records: int
) -> Trajectory:
    """Adam on `slopes`; its constants are those of torch."""
    lr, records = as_positive("lr", lr, "step size"), as_count("records", records, least=2)
    names = [name for name, _ in layers[0].named_parameters()]
    # W_K, W_Q, W_V, W_P, W_1, W_2 of all runs; LSA is a block whose MLP stays the identity.
    weights = np.tile(np.eye(std.R.shape[-1] + 1), (6, len(layers), 1, 1))
    for k, name in enumerate(names):
        weights[k] = [layer.get_parameter(name).detach().numpy() for layer in layers]
    gradient, first, second = np.zeros((3, *weights.shape))
    marks = np.unique(np.linspace(0, steps, records).round().astype(np.int64))
    recorded: list[tuple[Array, ...]] = []
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is looked for by name
        for step in range(steps + 1):
            u, v, W = _reduce(weights)
            if step == marks[len(recorded)]:
                risk = exact_slopes(std, u, v, W)[0]
                _check_finite("risk", risk, step)
                recorded.append((risk, u[:, :, 0], v[:, :, 0], W))
            if step == steps:
                break
            loss, slope = slopes(u, v, W)
            _check_finite("loss", loss, step)
            _expand(weights, slope, gradient[: len(names)])
            first += (1 - 0.9) * (gradient - first)
            second += (1 - 0.999) * (gradient * gradient - second)
            size = lr * (1 + np.cos(np.pi * step / steps)) / 2 / (1 - 0.9 ** (step + 1))
            weights -= size * first / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    with torch.no_grad():
        for name, values in zip(names, weights, strict=False):
            for layer, value in zip(layers, values, strict=True):
                layer.get_parameter(name).copy_(torch.from_numpy(value))
    return Trajectory(marks, *(np.stack(part, axis=1) for part in zip(*recorded, strict=True)))


def _reduce(weights: Array) -> Form:
    """`reduced_form` of the weights of each run, (6, runs, d+1, d+1)."""
    W_K, W_Q, W_V, W_P, W_1, W_2 = weights
    row = W_1.mT @ W_2[..., -1:]  # last row of W_2^T W_1, (runs, d+1, 1)
    return row[:, :-1], W_V.mT @ (W_P @ row), W_Q[..., :-1].mT @ W_K


def _expand(weights: Array, slopes: Form, out: Array) -> None:
    """Write the slopes in the weights, given those in u, v and W; out is (4 or 6, runs, ...)."""
    W_K, W_Q, W_V, W_P, W_1, W_2 = weights
    d_u, d_v, d_W = slopes
    row = W_1.mT @ W_2[..., -1:]
    d_p = W_V @ d_v  # p = W_P row, (runs, d+1, 1)
    out[0], out[1, ..., :-1] = W_Q[..., :-1] @ d_W, W_K @ d_W.mT
    out[2], out[3] = W_P @ row @ d_v.mT, d_p @ row.mT
    if len(out) > 4:
        d_row = W_P.mT @ d_p
        d_row[:, :-1] += d_u
        out[4], out[5, ..., -1:] = W_2[..., -1:] @ d_row.mT, W_1 @ d_row


def _check_finite(what: str, values: Array, step: int) -> None:
    for run in np.flatnonzero(~np.isfinite(values)):
        message = f"the {what} of run {run} is {values[run]} at step {step}"
        raise FloatingPointError(f"training diverged: {message}")


def _check_layers(layers: Layers, d: int) -> None:
    kinds = sorted({type(layer).__name__ for layer in layers})
    if len(kinds) != 1:
        raise ValueError(f"layers: got kinds {kinds}, expected at least one layer, all of one kind")
    wrong = {layer.d for layer in layers} - {d}
    if wrong:
        raise ValueError(f"layers: got one for d = {min(wrong)}, expected d = {d}, the task's")
    _check_own("layers", layers, len(layers))


def _check_own(name: str, values: Sequence[object], runs: int) -> None:
    different = len({id(value) for value in values})
    if not different == len(values) == runs:
        raise ValueError(
            f"{name}: got {len(values)}, {different} of them different, expected one of its own "
            f"for each of the {runs} runs"
        )


def _prompts(
    task: RegressionTask, steps: int, batch: int, rngs: Sequence[np.random.Generator]
) -> Iterator[tuple[Array, ...]]:
    """What `short_slopes` needs at each step, (runs, 1 or d, batch)."""
    shared = task.root_H @ task.beta_star

    def draw(start: int) -> list[Array]:
        now = min(_CHUNK, steps - start)
        fields = []
        for rng in rngs:
            p = sample_short(task, now * batch, rng)
            fields.append((p.chi2, p.normal, p.own, p.query, p.target - p.query @ shared))
        return [
            np.stack([part.reshape(now, batch, -1).mT for part in parts], axis=1)
            for parts in zip(*fields, strict=True)
        ]

    # NumPy draws without Python's lock: the next chunk is drawn while this one is trained on.
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(draw, 0)
        for start in range(0, steps, _CHUNK):
            now = ahead.result()
            if start + _CHUNK < steps:
                ahead = pool.submit(draw, start + _CHUNK)
            yield from zip(*now, strict=True)
