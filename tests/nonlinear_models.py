"""A small model and prompts for the tests of iclbook.nonlinear."""

import numpy as np
import torch

from iclbook.nonlinear import (
    OneLayerTransformer,
    Patterns,
    Prompts,
    all_tasks,
    orthogonal_patterns,
    sample_prompts,
)

M1, M2, DX, DY, NEURONS = 4, 5, 11, 3, 10


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


PATTERNS = orthogonal_patterns(M1, M2, DX, DY, 1.5, rng(9))


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> OneLayerTransformer:
    """A model far from its start, with nothing special about its weights."""
    generator = torch.Generator().manual_seed(seed)
    model = OneLayerTransformer(DX, DY, NEURONS, generator, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += (0.3 * draw).to(dtype)
    return model


def prompts(n: int = 40, l: int = 6, patterns: Patterns = PATTERNS) -> Prompts:
    return sample_prompts(patterns, all_tasks(M1), n, l, 0.7, rng(1))
