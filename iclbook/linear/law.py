"""The exact law of a prediction: a prompt of any length at the price of two numbers.

Taught in the chapter linear/gd-beta. Given its task and its query, a prediction is
<u, x> + sum_i <w, e_i> <k, e_i> / M, with white examples e_i = (input, noise): the value path
reads an example as <w, e_i>, and the query asks it for <k, e_i>. The sum has the law of
omega <w, k> + sqrt(omega (<w, w> <k, k> - <w, k>^2)) xi, with omega chi-square of M degrees of
freedom and xi standard normal. `short_predictions` is this, in torch, to be read and
differentiated; `short_slopes` is the same with its gradient by hand, for training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclbook.checks import Array, as_count, as_generator
from iclbook.linear.layers import as_tensor
from iclbook.linear.risk import Form, Standard, from_standard, to_standard
from iclbook.linear.task import RegressionTask

_TINY = 1e-300  # under a root, so that w parallel to k has the gradient 0 and not 0/0


@dataclass(frozen=True, eq=False)
class ShortPrompts:
    """n prompts, reduced to what the prediction of a layer needs: 2d + 3 numbers for any M.

    Inputs are white here: the input itself is H^(1/2) times what is stored.

    Attributes:
        chi2: Chi-square numbers with M degrees of freedom, (n,): what the examples agree on.
        normal: Standard normal numbers, (n,): what they do not.
        own: H^(1/2) (beta - beta_star), what a prompt's task vector adds to the shared one, (n, d).
        query: White queries, (n, d).
        target: The queries' noisy labels, (n,).
    """

    chi2: Array
    normal: Array
    own: Array
    query: Array
    target: Array


def sample_short(task: RegressionTask, n: int, rng: np.random.Generator) -> ShortPrompts:
    """Draw n independent prompts, at a cost that does not depend on their length M.

    Tasks, examples, noise and queries come from four streams spawned from `rng`.

    Raises:
        ValueError: n < 1, or rng is no NumPy generator.

    Source: derived in this book, the section on prompts of any length.
    """
    n = as_count("n", n)
    tasks, examples, noise, queries = as_generator("rng", rng).spawn(4)
    own = tasks.standard_normal((n, task.d)) @ (task.root_Psi @ task.root_H)  # (n, d)
    query = queries.standard_normal((n, task.d))  # (n, d)
    target = np.einsum("nd,nd->n", query, own) + query @ (task.root_H @ task.beta_star)  # (n,)
    target += task.sigma * noise.standard_normal(n)
    chi2, normal = examples.chisquare(task.M, n), examples.standard_normal(n)  # (n,)
    return ShortPrompts(chi2, normal, own, query, target)


def short_predictions(
    task: RegressionTask, u: Tensor, v: Tensor, W: Tensor, prompts: ShortPrompts
) -> Tensor:
    """<u + W G v, x> for each prompt, equal in law to the layer's prediction on M examples.

    The law is that of one prediction given its task and its query. It is differentiable in u, v
    and W, and the mean of the gradients is the gradient of the mean. A single prompt's gradient
    differs in law from the one through its examples.

    Args:
        task: gives H, beta_star, sigma and M.
        u: what the MLP adds, (d,).
        v: what the value path reads, (d+1,).
        W: the key-query block, (d, d+1).
        prompts: n of them, drawn for `task`.

    Returns:
        Predicted labels of the queries, (n,).

    Raises:
        ValueError: u, v or W that does not fit the task, NaN, wrong dtype.

    Source: derived in this book, the section on prompts of any length.
    """
    d = task.d
    u, v, W = as_tensor("u", u, (d,)), as_tensor("v", v, (d + 1,)), as_tensor("W", W, (d, d + 1))
    root = torch.tensor(task.root_H)  # (d, d)
    chi2, normal = torch.as_tensor(prompts.chi2), torch.as_tensor(prompts.normal)  # (n,)
    own, query = torch.as_tensor(prompts.own), torch.as_tensor(prompts.query)  # (n, d)
    labels = own + root @ torch.tensor(task.beta_star)  # a label is <labels, input> + sigma noise
    asked = query @ root @ W  # W^T x, (n, d+1)
    w, w_noise = root @ v[:-1] + v[-1] * labels, v[-1] * task.sigma  # (n, d), ()
    k, k_noise = asked[:, :-1] @ root + asked[:, -1:] * labels, asked[:, -1] * task.sigma  # (n,)
    ww = (w * w).sum(dim=1) + w_noise * w_noise  # (n,)
    wk = (w * k).sum(dim=1) + w_noise * k_noise
    kk = (k * k).sum(dim=1) + k_noise * k_noise
    across = (chi2 * (ww * kk - wk * wk)).clamp_min(_TINY).sqrt() * normal
    return query @ (root @ u) + (chi2 * wk + across) / task.M


def short_slopes(
    std: Standard, u: Array, v: Array, W: Array, prompts: tuple[Array, ...]
) -> tuple[Array, Form]:
    """Mean squared error of `short_predictions`, and its slopes in u, v and W, for several runs.

    By hand, since autograd's bookkeeping costs several times the arithmetic. All is computed in the
    standard units of `iclbook.linear.risk`, where the label of an example is <own, z> + noise.

    Args:
        std: the task.
        u: (runs, d, 1).
        v: (runs, d+1, 1).
        W: (runs, d, d+1).
        prompts: chi2 and normal (runs, 1, n), own and query (runs, d, n), and the part of target
            that is not shared, target - <beta_star, x>, (runs, 1, n).

    Returns:
        Errors (runs,), and slopes with the shapes of u, v and W.

    Source: derived in this book, the section on prompts of any length.
    """
    u, v, W = to_standard(std, u, v, W)
    chi2, normal, own, query, target = prompts
    d, n, M = *own.shape[1:], std.M
    p, c, Wx = v[:, :-1], v[:, -1:], W[:, :, :-1]  # (runs, d, 1), (runs, 1, 1), (runs, d, d)
    # w = (p + c own, c sigma) and k = (a + e own, e sigma); all that follows is (runs, 1, n).
    asked = np.concatenate([W, u, Wx @ p], axis=2).mT @ query  # (runs, d+3, n)
    a, e, start, ap = asked[:, :d], asked[:, d : d + 1], asked[:, d + 1 : d + 2], asked[:, d + 2 :]
    oo = np.einsum("rdn,rdn->rn", own, own)[:, None] + std.noise  # <own, own> + sigma^2
    oa, aa = (np.einsum("rdn,rdn->rn", a, other)[:, None] for other in (own, a))
    op = p.mT @ own
    w_o, k_o = op + c * oo, oa + e * oo  # how w and k read a label
    ww, wk, kk = p.mT @ p + c * (op + w_o), ap + e * op + c * k_o, aa + e * (oa + k_o)
    square = chi2 * (ww * kk - wk * wk)
    root = np.sqrt(np.maximum(square, _TINY))
    error = start + (chi2 * wk + root * normal) / M - target
    # Backwards, line by line; d_x is the slope of the mean squared error in x.
    d_start = 2 / n * error
    pull = d_start * chi2 / M
    d_across = np.where(square > _TINY, pull * normal / (2 * root), 0.0)  # in ww kk - wk^2
    d_ww, d_kk, d_wk = d_across * kk, d_across * ww, pull - 2 * d_across * wk
    d_c = (2 * d_ww * w_o + d_wk * k_o).sum(axis=2, keepdims=True)  # (runs, 1, 1)
    d_op, d_oa = 2 * c * d_ww + e * d_wk, 2 * e * d_kk + c * d_wk
    a *= 2 * d_kk  # asked becomes its own slope
    a += d_oa * own
    e[:], start[:], ap[:] = 2 * d_kk * k_o + d_wk * w_o, d_start, d_wk
    back = query @ asked.mT  # the slopes in W, u and Wx p, (runs, d, d+3)
    d_W, d_u, d_Wp = back[:, :, : d + 1], back[:, :, d + 1 : d + 2], back[:, :, d + 2 :]
    d_W[:, :, :d] += d_Wp @ p.mT
    d_p = 2 * d_ww.sum(axis=2, keepdims=True) * p + own @ d_op.mT + Wx.mT @ d_Wp  # (runs, d, 1)
    slopes = from_standard(std, d_u, np.concatenate([d_p, d_c], axis=1), d_W)
    return (error * error).mean(axis=(1, 2)), slopes
