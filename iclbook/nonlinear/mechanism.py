"""What a trained model does inside: its keys and queries, its neurons (nonlinear/mechanism)."""

from dataclasses import dataclass

import numpy as np
import torch

from iclbook.checks import Array
from iclbook.nonlinear.model import OneLayerTransformer
from iclbook.nonlinear.prompts import Patterns, PromptIndices, build_prompts


@dataclass(frozen=True, eq=False)
class Growth:
    """Mean lengths of queries and keys; a projection is the part along the token's own pattern."""

    query: float
    """Norm of W_Q p_query."""
    query_along: float
    """Component of W_Q p_query along the relevant pattern of the query."""
    key: float
    """Norm of W_K p_i, over all contexts."""
    key_along: float
    """Component of W_K p_i along the relevant pattern of context i."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """The rows of W_O W_V, split at coordinate dX. Angles in radians, NaN where the norm is 0."""

    feature_norm: Array
    """Norm of the first dX coordinates, (m,)."""
    feature_angle: Array
    """Their angle to mu_bar, the mean of the relevant patterns, (m,)."""
    label_norm: Array
    """Norm of the last dY coordinates, (m,)."""
    label_angle: Array
    """Their angle to q, (m,)."""
    positive: np.ndarray
    """Whether a_i > 0, (m,)."""


def growth(model: OneLayerTransformer, patterns: Patterns, indices: PromptIndices) -> Growth:
    """How far queries and keys have grown along the relevant patterns.

    Source: paper B, Proposition 4.1 and Figure 2 (A).
    """
    prompts = build_prompts(patterns, indices)
    unit = np.zeros((patterns.M1, patterns.dX + patterns.dY))
    unit[:, : patterns.dX] = patterns.mu / patterns.beta
    query = prompts.query @ _numpy(model.W_Q).T
    key = prompts.tokens @ _numpy(model.W_K).T
    along = unit[indices.pattern]
    return Growth(
        query=float(np.linalg.norm(query, axis=-1).mean()),
        query_along=float((query * along[:, -1]).sum(axis=-1).mean()),
        key=float(np.linalg.norm(key, axis=-1).mean()),
        key_along=float((key * along[:, :-1]).sum(axis=-1).mean()),
    )


def neurons(model: OneLayerTransformer, patterns: Patterns) -> Neurons:
    """Where the neurons point: feature part against mu_bar, label part against q.

    Source: paper B, the mechanism; Figure 2 (C) and (D).
    """
    rows = _numpy(model.W_O) @ _numpy(model.W_V)
    feature, label = rows[:, : patterns.dX], rows[:, patterns.dX :]
    feature_norm, feature_angle = _polar(feature, patterns.mu.mean(axis=0))
    label_norm, label_angle = _polar(label, patterns.q)
    return Neurons(
        feature_norm=feature_norm,
        feature_angle=feature_angle,
        label_norm=label_norm,
        label_angle=label_angle,
        positive=_numpy(model.a) > 0,
    )


def _polar(rows: Array, axis: Array) -> tuple[Array, Array]:
    """Norm of each row, and its angle to the axis."""
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):  # a neuron that was pruned away points nowhere
        cosine = rows @ (axis / np.linalg.norm(axis)) / norms
    return norms, np.arccos(cosine.clip(-1, 1))


def _numpy(weight: torch.Tensor) -> Array:
    return weight.detach().double().numpy()
