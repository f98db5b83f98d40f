"""Tasks for the tests of iclbook.linear."""

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
    """General H and Psi that do not commute, beta_star of norm about 1."""
    H = random_covariance(d, d if rank_H is None else rank_H, rng)
    Psi = random_covariance(d, d if rank_Psi is None else rank_Psi, rng)
    return RegressionTask(H, Psi / d, rng.standard_normal(d) / np.sqrt(d), sigma, M)
