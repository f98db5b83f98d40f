"""Training and evaluation in the coordinates of the patterns (chapter nonlinear/training).

Every token is a combination of the K = M1 + M2 + 1 rows of `patterns.basis`, three of them at a
time. So scores are looked up in one K x K table, attention pools K numbers for each prompt, and the
gradients of all weights lie in the span of the patterns. No dense token is built, and nothing is
approximated: the functions and the updates are those of `OneLayerTransformer`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from iclbook.checks import Array, as_array, as_count
from iclbook.nonlinear.model import OneLayerTransformer
from iclbook.nonlinear.prompts import (
    Indices,
    Patterns,
    PromptIndices,
    as_tasks,
    check_indices,
    sample_indices,
)

_CHUNK = 16  # steps whose prompts are drawn at once


@dataclass(frozen=True, eq=False)
class History:
    """What runs side by side were at each mark."""

    steps: Indices
    """Number of steps taken, (k,), from 0 to the last."""
    loss: Array
    """Hinge loss of each run on its fixed evaluation prompts, (runs, k)."""
    error: Array
    """Classification error there, (runs, k)."""
    snapshots: tuple[tuple[OneLayerTransformer, ...], ...]
    """snapshots[mark][run]: a copy of the model then; empty unless asked for."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model does on n prompts."""

    output: Array
    """F(P), (n,)."""
    attention: Array
    """Attention on the contexts, (n, l)."""
    loss: float
    """Mean hinge loss."""
    error: float
    """Fraction of prompts whose label is not the sign of F(P); F(P) = 0 counts as wrong."""
    same: float
    """Mean attention on contexts that share the query's relevant pattern."""


@dataclass(eq=False)
class _State:
    """The weights of all runs as they act on the patterns, the rows of B; leading axis: runs."""

    Q: Tensor  # B W_Q^T: row j is W_Q times pattern j, (runs, K, d)
    K: Tensor  # B W_K^T, (runs, K, d)
    V: Tensor  # B W_V^T, (runs, K, d)
    O: Tensor  # W_O, (runs, m, d)
    a: Tensor  # (runs, 1, m)
    square: Tensor  # squared norms of the patterns, (runs, K, 1)


@dataclass(eq=False)
class _Batch:
    """Prompts in the coordinates of the patterns; leading axis: runs, or 1 if they share them."""

    relevant: Tensor  # index of each context's relevant pattern, (runs, n, l)
    irrelevant: Tensor  # and of its irrelevant one, (runs, n, l)
    kappa: Tensor  # (runs, n, l)
    y: Tensor  # labels of the contexts, (runs, n, l)
    query: Tensor  # coordinates of the queries, (runs, n, K)
    z: Tensor  # labels of the queries, (runs, n)

    def part(self, start: int, stop: int) -> "_Batch":
        return _Batch(*(value[:, start:stop] for value in vars(self).values()))

    def rows(self, rows: Tensor) -> "_Batch":
        return _Batch(*(_rows(value, rows) for value in vars(self).values()))


def train(
    models: Sequence[OneLayerTransformer],
    patterns: Patterns | Sequence[Patterns],
    tasks: ArrayLike | Sequence[ArrayLike],
    *,
    steps: int,
    batch: int,
    l: int,
    alpha: float | Sequence[float],
    lr: float | Sequence[float],
    rngs: Sequence[np.random.Generator],
    eval_tasks: ArrayLike | Sequence[ArrayLike],
    eval_n: int = 1000,
    kappa: float = 0.3,
    records: int = 60,
    snapshots: bool = False,
) -> History:
    """Train models in place by minibatch SGD on the hinge loss, fresh prompts at each step.

    The runs are independent and share one batched tensor. W_Q, W_K, W_V and W_O are trained, a is
    fixed. `patterns`, `tasks`, `eval_tasks`, `alpha` and `lr` are for all runs, or a list with one
    for each run.

    Args:
        models: one per run, of one shape and dtype; their weights are the starts, and are left
            trained.
        patterns: all with the same M1 and M2.
        tasks: trained tasks, (t, 2).
        steps: number of steps, at least 1.
        batch: prompts per step and run, at least 1.
        l: contexts per prompt, at least 1.
        alpha: fraction of contexts that show the task's patterns, in (0, 1].
        lr: step size, positive.
        rngs: one per run, draws its prompts. A single one for several runs lets them share their
            prompts, which is faster; only for comparing settings, as the runs are then dependent.
        eval_tasks: tasks of the evaluation prompts, (t, 2): in-domain error is on tasks held out.
        eval_n: number of evaluation prompts, drawn once, like the training prompts otherwise.
        kappa: largest weight of an irrelevant pattern, at least 0.
        records: how many times loss and error are recorded, evenly over the run; at least 2.
        snapshots: whether to keep a copy of the models at each mark.

    Raises:
        ValueError: names the argument, what was given and what was expected.
        FloatingPointError: a loss is no longer finite; says in which run, at which step.

    Source: paper B, the training by SGD; the coordinates are derived in this book.
    """
    runs = len(models)
    steps, batch = as_count("steps", steps), as_count("batch", batch)
    eval_n, records = as_count("eval_n", eval_n), as_count("records", records, least=2)
    each = [patterns] * runs if isinstance(patterns, Patterns) else list(patterns)
    _check_runs(models, each, rngs)
    rates, alphas = _per_run("lr", lr, runs), _per_run("alpha", alpha, runs)
    if rates.min() <= 0:
        raise ValueError(f"lr: got {lr}, expected positive step sizes")
    trained = _tasks_per_run("tasks", tasks, runs, each[0].M1)
    unseen = _tasks_per_run("eval_tasks", eval_tasks, runs, each[0].M1)
    _check_sharing(rngs, trained, unseen, alphas)

    def draw(many: list[Indices], n: int) -> _Batch:
        M1, M2 = each[0].M1, each[0].M2
        drawn = [
            sample_indices(M1, M2, many[run], n, l, alphas[run], rng, kappa)
            for run, rng in enumerate(rngs)
        ]
        return _as_batch(M1, M2, drawn, models[0].a.dtype)

    held_out = draw(unseen, eval_n)
    state = _as_state(models, each)
    start = copy.deepcopy(state)
    step_sizes = torch.tensor(rates, dtype=models[0].a.dtype)[:, None, None]
    marks = np.unique(np.linspace(0, steps, records).round().astype(np.int64))
    loss, error, kept = [], [], []
    for step in range(steps + 1):
        if step in marks:
            margin = held_out.z * _forward(state, held_out)[-1]
            loss.append(torch.relu(1 - margin).mean(dim=1).tolist())
            error.append((margin <= 0).double().mean(dim=1).tolist())
            _check_finite(loss[-1], step)
            if snapshots:
                kept.append(tuple(copy.deepcopy(model) for model in models))
                _write_back(kept[-1], each, start, state)
        if step == steps:
            break
        now = step % _CHUNK
        if now == 0:
            chunk = draw(trained, min(_CHUNK, steps - step) * batch)
        _step(state, chunk.part(now * batch, (now + 1) * batch), step_sizes, step)
    _write_back(models, each, start, state)
    return History(
        steps=marks, loss=np.array(loss).T, error=np.array(error).T, snapshots=tuple(kept)
    )


def evaluate(model: OneLayerTransformer, patterns: Patterns, indices: PromptIndices) -> Evaluation:
    """What a model does on prompts drawn by `sample_indices`, without building their tokens.

    Needs about 8 m bytes a prompt in float64: with m = 200, ten thousand prompts take 16 MB.

    Raises:
        ValueError: patterns of other dimensions than the model's, or indices beyond the patterns.
    """
    check_indices(patterns, indices)
    _check_runs([model], [patterns], [np.random.default_rng(0)])
    batch = _as_batch(patterns.M1, patterns.M2, [indices], model.a.dtype)
    attention, *_, output = _forward(_as_state([model], [patterns]), batch)
    margin = (batch.z * output)[0].double()
    same = torch.from_numpy(indices.pattern[:, :-1] == indices.pattern[:, -1:])
    return Evaluation(
        output=output[0].double().numpy(),
        attention=attention[0].double().numpy(),
        loss=torch.relu(1 - margin).mean().item(),
        error=(margin <= 0).double().mean().item(),
        same=(attention[0].double() * same).sum(dim=1).mean().item(),
    )


def _forward(state: _State, batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The model, and what its gradient needs.

    Returns:
        attention (runs, n, l), pooled coordinates (runs, n, K), A = neurons on patterns
        (runs, K, m), and the output F (runs, n).
    """
    table = state.Q @ state.K.mT  # scores of all patterns as query against all as key, (runs, K, K)
    attention = torch.softmax(_at_contexts(batch.query @ table, batch), dim=-1)
    pooled = _to_patterns(attention, batch)
    A = state.V @ state.O.mT
    hidden = (A.mT @ pooled.mT).relu_()  # (runs, m, n)
    return attention, pooled, A, (state.a @ hidden)[:, 0]


def _step(state: _State, batch: _Batch, lr: Tensor, step: int) -> None:
    """One step of SGD, by hand: autograd's bookkeeping costs too much on tensors this small."""
    attention, pooled, A, output = _forward(state, batch)
    margin = batch.z * output
    _check_finite(torch.relu(1 - margin).mean(dim=1).tolist(), step)
    pull = -batch.z * (margin < 1) / batch.z.shape[1]  # dloss/dF, (runs, n)
    busy = int((margin < 1).sum(dim=1).max())
    if busy == 0:
        return
    if 2 * busy < batch.z.shape[1]:
        # Soon after the plateau nearly all prompts have loss 0. The others alone have a gradient.
        rows = torch.topk(pull.abs(), busy, dim=1).indices
        batch = batch.rows(rows)
        attention, pooled = _rows(attention, rows), _rows(pooled, rows)
        output, pull = _rows(output, rows), _rows(pull, rows)
    on = A.mT @ pooled.mT
    torch.gt(on, 0, out=on)  # which neurons are on, as numbers: ReLU(h) = on h, (runs, m, n)
    dA = state.a * ((pull[..., None] * pooled).mT @ on.mT)
    dpooled = pull[..., None] * ((state.a * A) @ on).mT
    # Softmax: sum_i attention_i dattention_i = <pooled, dpooled> = pull F.
    dscores = _at_contexts(dpooled, batch).sub_((pull * output)[..., None])
    dscores *= attention
    dtable = batch.query.mT @ _to_patterns(dscores, batch)
    dV, dO = dA @ state.O, dA.mT @ state.V
    dQ, dK = dtable @ state.K, dtable.mT @ state.Q
    # The gradient of a W is D^T B for such a D. So B W^T moves by B B^T D, and B B^T is diagonal.
    state.Q -= lr * state.square * dQ
    state.K -= lr * state.square * dK
    state.V -= lr * state.square * dV
    state.O -= lr * dO


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Some prompts of each run: values (runs or 1, n, ...), rows (runs, c) -> (runs, c, ...)."""
    return torch.take_along_dim(values, rows.reshape(*rows.shape, *[1] * (values.ndim - 2)), dim=1)


def _at_contexts(values: Tensor, batch: _Batch) -> Tensor:
    """<values, coordinates of context i>: (runs, n, K) -> (runs, n, l)."""
    read = values.gather(-1, batch.relevant.expand(values.shape[0], -1, -1))
    read.addcmul_(batch.kappa, values.gather(-1, batch.irrelevant.expand(values.shape[0], -1, -1)))
    return read.addcmul_(batch.y, values[..., -1:])


def _to_patterns(weights: Tensor, batch: _Batch) -> Tensor:
    """Sum_i weights_i (coordinates of context i): (runs, n, l) -> (runs, n, K)."""
    sums = weights.new_zeros(weights.shape[0], *batch.query.shape[1:])
    sums.scatter_add_(-1, batch.relevant.expand(weights.shape[0], -1, -1), weights)
    sums.scatter_add_(-1, batch.irrelevant.expand(weights.shape[0], -1, -1), batch.kappa * weights)
    sums[..., -1] = (weights * batch.y).sum(dim=-1)
    return sums


def _as_state(models: Sequence[OneLayerTransformer], patterns: Sequence[Patterns]) -> _State:
    with torch.no_grad():
        dtype = models[0].a.dtype
        B = torch.stack([torch.tensor(p.basis, dtype=dtype) for p in patterns])
        square = torch.stack([torch.tensor(p.norms**2, dtype=dtype) for p in patterns])
        W_Q, W_K, W_V, W_O, a = (
            torch.stack([getattr(model, name).detach() for model in models])
            for name in ("W_Q", "W_K", "W_V", "W_O", "a")
        )
        return _State(
            Q=B @ W_Q.mT,
            K=B @ W_K.mT,
            V=B @ W_V.mT,
            O=W_O,
            a=a[:, None, :],
            square=square[:, :, None],
        )


def _as_batch(M1: int, M2: int, drawn: list[PromptIndices], dtype: torch.dtype) -> _Batch:
    def stacked(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    irrelevant = stacked([p.irrelevant for p in drawn]).add_(M1)
    pattern = stacked([p.pattern for p in drawn])
    kappa = stacked([p.kappa for p in drawn]).to(dtype)
    query = torch.zeros(*kappa.shape[:2], M1 + M2 + 1, dtype=dtype)
    query.scatter_(-1, irrelevant[..., -1:], kappa[..., -1:])
    query.scatter_(-1, pattern[..., -1:], 1.0)
    return _Batch(
        relevant=pattern[..., :-1],
        irrelevant=irrelevant[..., :-1],
        kappa=kappa[..., :-1],
        y=stacked([p.context_label for p in drawn]).to(dtype),
        query=query,
        z=stacked([p.label for p in drawn]).to(dtype),
    )


def _write_back(
    models: Sequence[OneLayerTransformer], patterns: Sequence[Patterns], start: _State, now: _State
) -> None:
    """Set the models, whose weights are those of `start`, to those of `now`."""
    with torch.no_grad():
        for run, (model, given) in enumerate(zip(models, patterns, strict=True)):
            dual = torch.from_numpy(given.basis / given.norms[:, None] ** 2).to(model.a.dtype)
            for name, old, new in (
                (model.W_Q, start.Q, now.Q),
                (model.W_K, start.K, now.K),
                (model.W_V, start.V, now.V),
            ):
                name += (new[run] - old[run]).T @ dual
            model.W_O.copy_(now.O[run])


def _check_finite(losses: list[float], step: int) -> None:
    for run, loss in enumerate(losses):
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"training diverged: the loss of run {run} is {loss} at step {step}"
            )


def _check_sharing(
    rngs: Sequence[np.random.Generator],
    trained: list[Indices],
    unseen: list[Indices],
    alphas: Array,
) -> None:
    settings = {*map(id, trained)}, {*map(id, unseen)}, {*alphas.tolist()}
    if len(rngs) < len(alphas) and max(map(len, settings)) > 1:
        raise ValueError(
            "rngs: got one for runs with several tasks or alpha, expected one per run, since only "
            "runs with the same tasks and alpha can share their prompts"
        )


def _per_run(name: str, value: float | Sequence[float], runs: int) -> Array:
    return as_array(name, [value] * runs if np.ndim(value) == 0 else value, (runs,))


def _tasks_per_run(
    name: str, tasks: ArrayLike | Sequence[ArrayLike], runs: int, M1: int
) -> list[Indices]:
    """One checked list of tasks per run; the same object if it is the same for all."""
    if len(tasks) and np.ndim(tasks[0]) == 2:
        if len(tasks) != runs:
            raise ValueError(f"{name}: got {len(tasks)} lists of tasks, expected {runs}, one a run")
        return [as_tasks(name, one, M1) for one in tasks]
    return [as_tasks(name, tasks, M1)] * runs


def _check_runs(
    models: Sequence[OneLayerTransformer],
    patterns: Sequence[Patterns],
    rngs: Sequence[np.random.Generator],
) -> None:
    if not models or len({id(model) for model in models}) < len(models):
        raise ValueError("models: expected at least one, and a different one for each run")
    if len({(model.dX, model.dY, model.m, model.a.dtype) for model in models}) > 1:
        raise ValueError("models: expected one dX, dY, m and dtype for all runs")
    if len(patterns) != len(models):
        raise ValueError(
            f"patterns: got {len(patterns)} for {len(models)} models, expected one per run"
        )
    for given in patterns:
        if (given.dX, given.dY) != (models[0].dX, models[0].dY):
            raise ValueError(
                f"patterns: got dX = {given.dX}, dY = {given.dY}, expected those of the models, "
                f"{models[0].dX} and {models[0].dY}"
            )
        if (given.M1, given.M2) != (patterns[0].M1, patterns[0].M2):
            raise ValueError("patterns: expected the same M1 and M2 for all runs")
    if len(rngs) not in {1, len(models)} or len({id(rng) for rng in rngs}) < len(rngs):
        raise ValueError(
            f"rngs: got {len({id(rng) for rng in rngs})} generators, expected one for each of the "
            f"{len(models)} runs, or one that all share"
        )
