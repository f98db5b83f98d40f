"""Pruning of neurons: rows of W_O (chapter nonlinear/pruning)."""

import copy
from typing import Literal

import numpy as np
import torch

from iclbook.checks import Array, as_number
from iclbook.nonlinear.model import OneLayerTransformer

_ORDERS = ("magnitude", "random", "largest")


def neuron_norms(model: OneLayerTransformer) -> Array:
    """Norms of the rows of W_O, (m,)."""
    return model.W_O.detach().double().norm(dim=1).numpy()


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
    if not 0 <= as_number("rate", rate) <= 1:
        raise ValueError(f"rate: got {rate}, expected a fraction in [0, 1]")
    if by not in _ORDERS:
        raise ValueError(f"by: got {by!r}, expected one of {_ORDERS}")
    if by == "random":
        if rng is None:
            raise ValueError("rng: got none, expected a generator to draw the random rows")
        order = rng.permutation(model.m)
    else:
        order = np.argsort(neuron_norms(model), kind="stable")
        order = order if by == "magnitude" else order[::-1]
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.W_O[order[: round(rate * model.m)].copy()] = 0.0
    return pruned


def shrink(model: OneLayerTransformer) -> OneLayerTransformer:
    """The same function without the neurons whose row of W_O is zero: less to store and compute."""
    small = copy.deepcopy(model)
    keep = model.W_O.detach().abs().amax(dim=1) > 0
    small.m = int(keep.sum())
    small.W_O = torch.nn.Parameter(model.W_O.detach()[keep].clone())
    small.a = model.a[keep].clone()
    return small
