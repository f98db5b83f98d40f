"""Tasks for the tests of iclbook.linear."""

from dataclasses import replace

import numpy as np

from iclbook.checks import Array
from iclbook.linear import RegressionTask


def random_covariance(d: int, rank: int, rng: np.random.Generator) -> Array:
    """A covariance of the given rank with eigenvalues between 1/2 and 2, in a random frame."""
    frame = np.linalg.qr(rng.standard_normal((d, d)))[0][:, :rank]
    return (frame * rng.uniform(0.5, 2.0, rank)) @ frame.T


def random_task(
    d: int,
    M: int,
    rng: np.random.Generator,
    *,
    sigma: float = 0.5,
    rank_H: int | None = None,
    rank_Psi: int | None = None,
) -> RegressionTask:
    """`RegressionTask.random`, with H or Psi of a lower rank if one is given."""
    task = RegressionTask.random(d, M, rng, sigma=sigma)
    if rank_H is not None:
        task = replace(task, H=random_covariance(d, rank_H, rng))
    if rank_Psi is not None:
        task = replace(task, Psi=random_covariance(d, rank_Psi, rng) / d)
    return task
