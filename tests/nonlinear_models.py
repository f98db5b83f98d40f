"""A small world, model and prompts for the tests of iclbook.nonlinear."""

from typing import Any

import numpy as np
import torch

from iclbook.nonlinear import OneLayerTransformer, Prompts, all_tasks, draw_world, sample_prompts

M1, M2, DX, DY, NEURONS = 4, 5, 11, 3, 10


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


WORLD = draw_world(rng(9), M1=M1, M2=M2, dX=DX, dY=DY, beta=1.5)
PATTERNS = WORLD.patterns


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> OneLayerTransformer:
    """A model far from its start, with nothing special about its weights."""
    generator = torch.Generator().manual_seed(seed)
    model = OneLayerTransformer(DX, DY, NEURONS, generator, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += (0.3 * draw).to(dtype)
    return model


def prompts(n: int = 40, l: int = 6, **changes: Any) -> Prompts:  # noqa: ANN401
    options: dict[str, Any] = {
        "patterns": PATTERNS, "tasks": all_tasks(M1), "alpha": 0.7, "rng": rng(1), **changes
    }  # fmt: skip
    return sample_prompts(n=n, l=l, **options)
