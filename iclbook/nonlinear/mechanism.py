"""What a trained model does inside: its scores, keys and queries, neurons (nonlinear/mechanism)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from iclbook.checks import Array
from iclbook.nonlinear.model import OneLayerTransformer
from iclbook.nonlinear.patterns import Patterns
from iclbook.nonlinear.prompts import Prompts


@dataclass(frozen=True, eq=False)
class Growth:
    """Mean lengths of queries and keys; a projection is the part along the token's own pattern.

    Attributes:
        query: Norm of W_Q p_query.
        query_along: Component of W_Q p_query along the relevant pattern of the query.
        key: Norm of W_K p_i, over all contexts.
        key_along: Component of W_K p_i along the relevant pattern of context i.
    """

    query: float
    query_along: float
    key: float
    key_along: float


@dataclass(frozen=True, eq=False)
class Neurons:
    """The rows of W_O W_V, split at coordinate dX. Angles in radians, NaN where the norm is 0.

    Attributes:
        feature_norm: Norm of the first dX coordinates, (m,).
        feature_angle: Their angle to mu_bar, the mean of the relevant patterns, (m,).
        label_norm: Norm of the last dY coordinates, (m,).
        label_angle: Their angle to q, (m,).
        positive: Whether a_i > 0, (m,).
    """

    feature_norm: Array
    feature_angle: Array
    label_norm: Array
    label_angle: Array
    positive: NDArray[np.bool_]


def scores(model: OneLayerTransformer, patterns: Patterns) -> Array:
    """Score of a query with pattern j on a context with pattern k, (M1, M1) at [j, k]."""
    tokens = patterns.basis[: patterns.M1]  # (mu; 0), (M1, d)
    return (tokens @ _numpy(model.W_Q).T) @ (tokens @ _numpy(model.W_K).T).T


def neuron_rows(model: OneLayerTransformer) -> Array:
    """The rows of W_O W_V, (m, dX + dY): neuron r is ReLU(<row r, pooled token>)."""
    return _numpy(model.W_O) @ _numpy(model.W_V)


def growth(model: OneLayerTransformer, prompts: Prompts) -> Growth:
    """How far queries and keys have grown along the relevant patterns.

    Source: paper B, Proposition 4.1 and Figure 2 (A).
    """
    patterns = prompts.patterns
    unit = patterns.basis[: patterns.M1] / patterns.beta  # (M1, d)
    along = unit[prompts.pattern]  # (n, l + 1, d)
    query = prompts.query @ _numpy(model.W_Q).T  # (n, d)
    key = prompts.tokens @ _numpy(model.W_K).T  # (n, l, d)
    return Growth(
        float(np.linalg.norm(query, axis=-1).mean()),
        float((query * along[:, -1]).sum(axis=-1).mean()),
        float(np.linalg.norm(key, axis=-1).mean()),
        float((key * along[:, :-1]).sum(axis=-1).mean()),
    )


def neurons(model: OneLayerTransformer, patterns: Patterns) -> Neurons:
    """Where the neurons point: feature part against mu_bar, label part against q.

    Source: paper B, the mechanism; Figure 2 (C) and (D).
    """
    rows = neuron_rows(model)
    feature = _polar(rows[:, : patterns.dX], patterns.mu.mean(axis=0))
    label = _polar(rows[:, patterns.dX :], patterns.q)
    return Neurons(*feature, *label, _numpy(model.a) > 0)


def _polar(rows: Array, axis: Array) -> tuple[Array, Array]:
    """Norm of each row, and its angle to the axis."""
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):  # a neuron that was pruned away points nowhere
        cosine = rows @ (axis / np.linalg.norm(axis)) / norms
    return norms, np.arccos(cosine.clip(-1, 1))


def _numpy(weight: torch.Tensor) -> Array:
    return weight.detach().double().numpy()
