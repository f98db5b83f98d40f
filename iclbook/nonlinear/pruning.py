"""Pruning of neurons: rows of W_O (chapter nonlinear/pruning)."""

import copy
from typing import Literal

import numpy as np
import torch

from iclbook.checks import Array, as_generator, as_number
from iclbook.nonlinear.model import OneLayerTransformer


def neuron_norms(model: OneLayerTransformer) -> Array:
    """Norms of the rows of W_O, (m,)."""
    return np.asarray(model.W_O.detach().double().norm(dim=1))


def prune(
    model: OneLayerTransformer,
    rate: float,
    by: Literal["magnitude", "random", "largest"] = "magnitude",
    rng: np.random.Generator | None = None,
) -> OneLayerTransformer:
    """A copy of the model in which the fraction `rate` of the rows of W_O is zero.

    Args:
        model: stays as it is.
        rate: fraction of the neurons to remove, in [0, 1]; rate m is rounded to a whole number.
        by: remove the rows of least norm, "magnitude"; of largest norm; or random ones.
        rng: draws the rows if they are random, else not needed.

    Raises:
        ValueError: a rate outside [0, 1], another `by`, or random rows without `rng`.

    Source: paper B, Theorem 3.7.
    """
    rate = as_number("rate", rate)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, expected a fraction in [0, 1]")
    if by == "random":
        order = as_generator("rng", rng).permutation(model.m)
    elif by in {"magnitude", "largest"}:
        norms = neuron_norms(model)
        order = np.argsort(norms if by == "magnitude" else -norms, kind="stable")
    else:
        raise ValueError(f"by: got {by!r}, expected 'magnitude', 'random' or 'largest'")
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.W_O[order[: round(rate * model.m)]] = 0.0
    return pruned


def shrink(model: OneLayerTransformer) -> OneLayerTransformer:
    """The same function without the neurons whose row of W_O is zero: less to store and compute."""
    small = copy.deepcopy(model)
    keep = model.W_O.detach().abs().amax(dim=1) > 0
    small.m = int(keep.sum())
    small.W_O = torch.nn.Parameter(model.W_O.detach()[keep].clone())
    small.a = model.a[keep].clone()
    return small
