"""Training and evaluation in the coordinates of the patterns (chapter nonlinear/training).

Every token is a combination of the K = M1 + M2 + 1 rows of `patterns.basis`, three of them at a
time. So scores are looked up in one K x K table, attention pools K numbers for each prompt, and the
gradients of all weights lie in the span of the patterns. No dense token is built, and nothing is
approximated: the functions and the updates are those of `OneLayerTransformer`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iclbook.checks import Array, as_count, as_positive
from iclbook.nonlinear.model import OneLayerTransformer
from iclbook.nonlinear.patterns import Indices, Patterns, World
from iclbook.nonlinear.prompts import Prompts, sample_prompts

_CHUNK = 16  # steps whose prompts are drawn at once
Models = Sequence[OneLayerTransformer]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What runs side by side were at each mark.

    Attributes:
        steps: Number of steps taken, (k,), from 0 to the last.
        loss: Hinge loss of each run on its evaluation prompts, (runs, k).
        error: Classification error there, (runs, k).
        snapshots: snapshots[mark][run]: a copy of the model then; empty unless asked for.
    """

    steps: Indices
    loss: Array
    error: Array
    snapshots: tuple[tuple[OneLayerTransformer, ...], ...]

    def first_below(self, level: float) -> Array:
        """Step at which each run's loss falls below a level, (runs,), log-linear between marks.

        `np.searchsorted(steps, first_below(level))` is the mark after it, of a snapshot, say.

        Raises:
            ValueError: a run's loss never is below the level, or is from the start.
        """
        under = self.loss < level
        if under[:, 0].any() or not under.any(axis=1).all():
            raise ValueError(f"level: got {level}, expected one that all runs cross")
        run, mark = np.arange(len(under)), under.argmax(axis=1)
        loss = np.maximum(self.loss, 1e-6 * level)  # at the mark it may be 0
        high, low = np.log(loss[run, mark - 1]), np.log(loss[run, mark])
        part = (high - np.log(level)) / (high - low)
        return np.asarray(self.steps[mark - 1] + part * np.diff(self.steps)[mark - 1])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model does on n prompts.

    Attributes:
        output: F(P), (n,).
        margin: z F(P), positive where the label is right, (n,).
        attention: Attention on the contexts, (n, l).
        loss: Mean hinge loss.
        error: Fraction of prompts whose label is not the sign of F(P); F(P) = 0 counts as wrong.
        same: Mean attention on contexts that share the query's relevant pattern.
    """

    output: Array
    margin: Array
    attention: Array
    loss: float
    error: float
    same: float


class _State(NamedTuple):
    """The weights of all runs as they act on the patterns, the rows of B; leading axis: runs."""

    Q: Tensor  # B W_Q^T: row j is W_Q times pattern j, (runs, K, d)
    K: Tensor  # B W_K^T, (runs, K, d)
    V: Tensor  # B W_V^T, (runs, K, d)
    O: Tensor  # W_O, (runs, m, d)
    a: Tensor  # (runs, 1, m)
    square: Tensor  # squared norms of the patterns, (runs, K, 1)


class _Batch(NamedTuple):
    """Prompts in the coordinates of the patterns; leading axis: runs."""

    relevant: Tensor  # index of each context's relevant pattern, (runs, n, l)
    irrelevant: Tensor  # and of its irrelevant one, (runs, n, l)
    kappa: Tensor  # (runs, n, l)
    y: Tensor  # labels of the contexts, (runs, n, l)
    query: Tensor  # coordinates of the queries, (runs, n, K)
    z: Tensor  # labels of the queries, (runs, n)


def train(
    models: Models,
    worlds: World | Sequence[World],
    *,
    steps: int,
    batch: int,
    l: int,
    alpha: float,
    lr: float,
    rngs: Sequence[np.random.Generator],
    evaluation: Sequence[Prompts],
    kappa: float = 0.3,
    records: int = 60,
    snapshots: bool = False,
) -> Trajectory:
    """Train models in place by minibatch SGD on the hinge loss, fresh prompts at each step.

    The runs are independent: each has its own weights and its own prompts. They share one batched
    tensor. W_Q, W_K, W_V and W_O are trained, a is fixed.

    The same seeds give the same weights, bit for bit, whatever is evaluated. Prompts are drawn 16
    steps at a time, by one `sample_prompts` a run, and that is part of the promise: with another
    number of steps in a chunk the same generator gives other prompts.

    Args:
        models: one per run, of one shape and dtype; their weights are the starts, and are left
            trained.
        worlds: one for all runs, or one per run, all with the same M1 and M2.
        steps: number of steps, at least 1.
        batch: prompts per step and run, at least 1.
        l: contexts per prompt, at least 1.
        alpha: fraction of contexts that show the task's patterns, in (0, 1].
        lr: step size, positive.
        rngs: one per run, draws its prompts, about the trained tasks.
        evaluation: prompts for loss and error, one `Prompts` per run, all with as many prompts and
            contexts. Any will do: about held-out tasks for the in-domain error, about
            `out_of_domain` patterns, and so on.
        kappa: largest weight of an irrelevant pattern, at least 0.
        records: how many times loss and error are recorded, evenly over the run; at least 2.
        snapshots: whether to keep a copy of the models at each mark.

    Raises:
        ValueError: names the argument, what was given and what was expected.
        FloatingPointError: a loss is no longer finite; says in which run, at which step.

    Source: paper B, the training by SGD; the coordinates are derived in this book.
    """
    steps, batch = as_count("steps", steps), as_count("batch", batch)
    lr, records = as_positive("lr", lr, "step size"), as_count("records", records, least=2)
    each = [worlds] * len(models) if isinstance(worlds, World) else list(worlds)
    patterns = [world.patterns for world in each]
    _check_runs(models, "worlds", patterns)
    _check_runs(models, "evaluation", [prompts.patterns for prompts in evaluation])
    shapes = {prompts.pattern.shape for prompts in evaluation}
    if len(shapes) > 1:
        raise ValueError(f"evaluation: got shapes (n, l + 1) in {shapes}, expected one")
    different = len({id(rng) for rng in rngs})
    if not different == len(rngs) == len(models):
        raise ValueError(f"rngs: got {different} different ones, expected {len(models)}, one a run")

    start, state = _as_state(models, patterns), _as_state(models, patterns)
    marks = np.unique(np.linspace(0, steps, records).round()).astype(np.int64).tolist()
    loss, error, kept = [], [], []
    for step in range(steps + 1):
        at = step % _CHUNK * batch
        if at == 0 and step < steps:
            n = min(_CHUNK, steps - step) * batch
            drawn = [
                sample_prompts(world.patterns, world.trained, n, l, alpha, rng, kappa)
                for world, rng in zip(each, rngs, strict=True)
            ]
            chunk = _as_batch(drawn, models[0].a.dtype)
        if step in marks:
            now = _models_at(state, models, start, patterns)
            margin = _evaluate(now, evaluation)[0]  # (runs, n)
            loss.append(_losses(margin, step))
            error.append((margin <= 0).double().mean(dim=1).tolist())
            if snapshots:
                kept.append(now)
        if step < steps:
            _step(state, _Batch(*(value[:, at : at + batch] for value in chunk)), lr, step)
    for model, trained in zip(models, now, strict=True):
        model.load_state_dict(trained.state_dict())
    return Trajectory(np.array(marks), np.array(loss).T, np.array(error).T, tuple(kept))


def evaluate(model: OneLayerTransformer, prompts: Prompts) -> Evaluation:
    """What a model does on prompts, without building their tokens.

    Needs about 8 m bytes a prompt in float64: with m = 200, ten thousand prompts take 16 MB.

    Raises:
        ValueError: patterns of other dimensions than the model's.
    """
    _check_runs([model], "prompts", [prompts.patterns])
    margin, attention = (value[0].double().numpy() for value in _evaluate([model], [prompts]))
    loss, error = np.maximum(1 - margin, 0).mean(), (margin <= 0).mean()
    same = (attention * prompts.same).sum(axis=1).mean()
    return Evaluation(prompts.label * margin, margin, attention, loss, error, same)


def _evaluate(models: Models, prompts: Sequence[Prompts]) -> tuple[Tensor, Tensor]:
    """Margins z F(P), (runs, n), and attention, (runs, n, l)."""
    batch = _as_batch(prompts, models[0].a.dtype)
    attention, *_, output = _forward(_as_state(models, [p.patterns for p in prompts]), batch)
    return batch.z * output, attention


def _forward(state: _State, batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The model, and what its gradient needs.

    Returns:
        attention (runs, n, l), pooled coordinates (runs, n, K), A = neurons on patterns
        (runs, K, m), and the output F (runs, n).
    """
    table = state.Q @ state.K.mT  # scores, any pattern as query against any as key, (runs, K, K)
    scores = _at_contexts(batch.query @ table, batch)  # (runs, n, K) -> (runs, n, l)
    attention = torch.softmax(scores, dim=-1)  # (runs, n, l)
    pooled = _to_patterns(attention, batch)  # (runs, n, K)
    A = state.V @ state.O.mT  # (runs, K, d) @ (runs, d, m) -> (runs, K, m)
    hidden = (A.mT @ pooled.mT).relu_()  # (runs, m, K) @ (runs, K, n) -> (runs, m, n)
    return attention, pooled, A, (state.a @ hidden)[:, 0]  # F: (runs, 1, n) -> (runs, n)


def _step(state: _State, batch: _Batch, lr: float, step: int) -> None:
    """One step of SGD, by hand: autograd's bookkeeping costs too much on tensors this small."""
    attention, pooled, A, output = _forward(state, batch)
    margin = batch.z * output  # (runs, n)
    _losses(margin, step)  # raises if one is not finite
    lossy = margin < 1  # (runs, n)
    pull = -batch.z * lossy / batch.z.shape[1]  # dloss/dF, (runs, n)
    busy = int(lossy.sum(dim=1).max())
    if busy == 0:
        return
    if 2 * busy < batch.z.shape[1]:
        # Soon after the plateau nearly all prompts have loss 0. The others alone have a gradient.
        rows = torch.topk(pull.abs(), busy, dim=1).indices  # (runs, busy); from here n = busy
        batch = _Batch(*(_rows(value, rows) for value in batch))
        attention, pooled = _rows(attention, rows), _rows(pooled, rows)
        output, pull = _rows(output, rows), _rows(pull, rows)
    on = A.mT @ pooled.mT  # before the ReLU, (runs, m, n)
    torch.gt(on, 0, out=on)  # which neurons are on, as numbers: ReLU(h) = on h, (runs, m, n)
    dA = state.a * ((pull[..., None] * pooled).mT @ on.mT)  # (runs, K, n) @ (runs, n, m)
    dpooled = pull[..., None] * ((state.a * A) @ on).mT  # (runs, K, m) @ (runs, m, n), turned
    # Softmax: sum_i attention_i dattention_i = <pooled, dpooled> = pull F.
    dscores = _at_contexts(dpooled, batch).sub_((pull * output)[..., None])  # (runs, n, l)
    dscores *= attention
    dtable = batch.query.mT @ _to_patterns(dscores, batch)  # (runs, K, n) @ (runs, n, K)
    dV, dO = dA @ state.O, dA.mT @ state.V  # (runs, K, d), (runs, m, d)
    dQ, dK = dtable @ state.K, dtable.mT @ state.Q  # (runs, K, d) each
    # The gradient of a W is D^T B for such a D. So B W^T moves by B B^T D, and B B^T is diagonal.
    state.Q.addcmul_(state.square, dQ, value=-lr)
    state.K.addcmul_(state.square, dK, value=-lr)
    state.V.addcmul_(state.square, dV, value=-lr)
    state.O.sub_(dO, alpha=lr)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Some prompts of each run: values (runs, n, ...), rows (runs, c) -> (runs, c, ...)."""
    return torch.take_along_dim(values, rows.reshape(*rows.shape, *[1] * (values.ndim - 2)), dim=1)


def _at_contexts(values: Tensor, batch: _Batch) -> Tensor:
    """<values, coordinates of context i>: (runs, n, K) -> (runs, n, l)."""
    read = values.gather(-1, batch.relevant)
    read.addcmul_(batch.kappa, values.gather(-1, batch.irrelevant))
    return read.addcmul_(batch.y, values[..., -1:])


def _to_patterns(weights: Tensor, batch: _Batch) -> Tensor:
    """Sum_i weights_i (coordinates of context i): (runs, n, l) -> (runs, n, K)."""
    sums = torch.zeros_like(batch.query)
    sums.scatter_add_(-1, batch.relevant, weights)
    sums.scatter_add_(-1, batch.irrelevant, batch.kappa * weights)
    sums[..., -1] = (weights * batch.y).sum(dim=-1)
    return sums


@torch.no_grad()
def _as_state(models: Models, patterns: Sequence[Patterns]) -> _State:
    dtype = models[0].a.dtype
    B = torch.from_numpy(np.stack([given.basis for given in patterns])).to(dtype)  # (runs, K, d)
    W_Q, W_K, W_V, W_O, a = (
        torch.stack([getattr(model, name).detach() for model in models])
        for name in ("W_Q", "W_K", "W_V", "W_O", "a")
    )
    square = B.square().sum(dim=2, keepdim=True)
    return _State(B @ W_Q.mT, B @ W_K.mT, B @ W_V.mT, W_O, a[:, None, :], square)


def _as_batch(drawn: Sequence[Prompts], dtype: torch.dtype) -> _Batch:
    relevant, irrelevant, kappa, y, z = (
        torch.from_numpy(np.stack([getattr(prompts, name) for prompts in drawn]))
        for name in ("pattern", "irrelevant", "kappa", "context_label", "label")
    )
    M1, M2 = drawn[0].patterns.M1, drawn[0].patterns.M2
    relevant, irrelevant, kappa = relevant.long(), irrelevant.long() + M1, kappa.to(dtype)
    query = torch.zeros(*kappa.shape[:2], M1 + M2 + 1, dtype=dtype)  # (runs, n, K)
    query.scatter_(-1, irrelevant[..., -1:], kappa[..., -1:])
    query.scatter_(-1, relevant[..., -1:], 1.0)
    relevant, irrelevant, kappa = relevant[..., :-1], irrelevant[..., :-1], kappa[..., :-1]
    return _Batch(relevant, irrelevant, kappa, y.to(dtype), query, z.to(dtype))


@torch.no_grad()
def _models_at(
    state: _State, models: Models, start: _State, patterns: Sequence[Patterns]
) -> tuple[OneLayerTransformer, ...]:
    """Copies of the models, whose weights are those of `start`, with the weights of `state`."""
    copies = tuple(copy.deepcopy(model) for model in models)
    for run, (model, given) in enumerate(zip(copies, patterns, strict=True)):
        dual = torch.from_numpy(given.basis / given.norms[:, None] ** 2).to(model.a.dtype)
        for name in "QKV":
            moved = getattr(state, name)[run] - getattr(start, name)[run]  # (K, d)
            model.get_parameter(f"W_{name}").add_(moved.T @ dual)  # (d, K) @ (K, d)
        model.W_O.copy_(state.O[run])
    return copies


def _losses(margin: Tensor, step: int) -> list[float]:
    """The loss of each run; raises FloatingPointError if one is not finite."""
    losses: list[float] = torch.relu(1 - margin).mean(dim=1).tolist()
    for run, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise FloatingPointError(f"training diverged: loss {loss} of run {run} at step {step}")
    return losses


def _check_runs(models: Models, name: str, patterns: Sequence[Patterns]) -> None:
    """Raise ValueError unless models can run side by side, on the patterns of argument `name`."""
    different = len({id(model) for model in models})
    kinds = {(model.dX, model.dY, model.m, model.a.dtype) for model in models}
    if different < len(models) or len(kinds) != 1:
        raise ValueError(
            f"models: got {different} different ones, of (dX, dY, m, dtype) in {kinds}, expected "
            f"{max(len(models), 1)}, one a run, all of one kind"
        )
    sizes = {(given.dX, given.dY, given.M1, given.M2) for given in patterns}
    if len(patterns) != len(models) or len(sizes) > 1 or min(sizes)[:2] != min(kinds)[:2]:
        raise ValueError(
            f"{name}: got {len(patterns)} with (dX, dY, M1, M2) in {sizes}, expected one for each "
            f"of {len(models)} models, with their (dX, dY) = {min(kinds)[:2]} and one M1 and M2"
        )
