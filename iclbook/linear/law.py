"""The exact law of a prediction: a prompt of any length at the price of two numbers.

Taught in the chapter linear/gd-beta. Draws in float64 NumPy, predictions in torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclbook.checks import Array, as_count
from iclbook.linear.task import RegressionTask

_TINY = 1e-300  # under a root, so that w parallel to k has the gradient 0 and not 0/0


@dataclass(frozen=True, eq=False)
class ShortPrompts:
    """n prompts, reduced to what the prediction of a layer needs: 2d + 3 numbers for any M.

    Inputs are white here: the input itself is H^(1/2) times what is stored.
    """

    chi2: Array
    """Chi-square numbers with M degrees of freedom, (n,): what the examples agree on."""
    normal: Array
    """Standard normal numbers, (n,): what they do not."""
    task: Array
    """(H^(1/2) times the task vector, sigma), (n, d+1): its product with (input, noise) is a label.

    The noise is in units of sigma.
    """
    query: Array
    """White queries, (n, d)."""
    target: Array
    """The queries' noisy labels, (n,)."""


def sample_short(task: RegressionTask, n: int, rng: np.random.Generator) -> ShortPrompts:
    """Draw n independent prompts, at a cost that does not depend on their length M.

    Tasks, examples and queries come from three streams spawned from `rng`.

    Raises:
        ValueError: n < 1.

    Source: derived in this book, the section on prompts of any length.
    """
    n = as_count("n", n)
    tasks, examples, queries = rng.spawn(3)
    s = np.full((n, task.d + 1), task.sigma)
    s[:, :-1] = tasks.standard_normal((n, task.d)) @ (task.root_Psi @ task.root_H)
    s[:, :-1] += task.beta_star @ task.root_H
    query = queries.standard_normal((n, task.d + 1))
    return ShortPrompts(
        chi2=examples.chisquare(task.M, n),
        normal=examples.standard_normal(n),
        task=s,
        query=query[:, :-1],
        target=(query * s).sum(axis=1),
    )


def short_predictions(
    task: RegressionTask,
    form: tuple[Tensor, Tensor, Tensor],
    chi2: Tensor,
    normal: Tensor,
    s: Tensor,
    query: Tensor,
) -> Tensor:
    """<u + W G v, x> for each prompt, equal in law to the layer's prediction on M examples.

    The law is that of one prediction given its task and its query. It is differentiable in u, v
    and W, and the mean of the gradients is the gradient of the mean. A single prompt's gradient
    differs in law from the one through its examples.

    Args:
        task: gives H and M.
        form: u (..., d), v (..., d+1) and W (..., d, d+1); leading axes are runs, here and below.
        chi2: (..., n), this and the rest as in ShortPrompts.
        normal: (..., n).
        s: `task` of ShortPrompts, (..., n, d+1).
        query: (..., n, d).

    Returns:
        Predicted labels of the queries, (..., n).

    Source: derived in this book, the section on prompts of any length.
    """
    u, v, W = form
    root_H = torch.tensor(task.root_H)
    # White example e_i = (input, noise): the value path reads it as <w, e_i>, and the query asks
    # for <k, e_i>; both depend on the task through its label <s, e_i>. The layer predicts
    # <u, x> + sum_i <w, e_i> <k, e_i> / M.
    whiten = torch.block_diag(root_H, root_H.new_zeros(1, 1))
    w = torch.addcmul((v @ whiten)[..., None, :], v[..., None, -1:], s)
    asked = query @ (root_H @ torch.cat([W @ whiten, W[..., -1:], u[..., None]], dim=-1))
    k = torch.addcmul(asked[..., :-2], asked[..., -2:-1], s)
    ww, wk, kk = _Products.apply(w, k)
    across = (chi2 * (ww * kk - wk * wk)).clamp_min(_TINY).sqrt() * normal
    return asked[..., -1] + (chi2 * wk + across) / task.M


class _Products(torch.autograd.Function):
    """<w, w>, <w, k> and <k, k> over the last axis, with half of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, k: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.save_for_backward(w, k)
        return (w * w).sum(dim=-1), (w * k).sum(dim=-1), (k * k).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, ww: Tensor, wk: Tensor, kk: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        w, k = ctx.saved_tensors
        ww, wk, kk = 2 * ww[..., None], wk[..., None], 2 * kk[..., None]
        return (ww * w).addcmul_(wk, k), (kk * k).addcmul_(wk, w)
