"""Estimators of the task vector from a prompt, and the Bayes risk (chapter linear/prompts)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from iclbook.checks import Array, as_array, as_count, as_generator, as_positive
from iclbook.linear.task import RegressionTask


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo mean with its standard error, in the units of the quantity."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """From n independent draws, (n,).

        Raises:
            ValueError: fewer than 2 draws (no standard error), NaN, wrong dtype.
        """
        values = as_array("values", values, (None,))
        as_count("number of values", len(values), least=2)
        return cls(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))

    def z(self, expected: float) -> float:
        """How many standard errors the mean lies above what is expected."""
        return (self.mean - expected) / self.stderr


def relative_error(found: ArrayLike, expected: ArrayLike) -> float:
    """|found - expected| / |expected|, by the root of the sum of squares, for arrays of one shape.

    Raises:
        ValueError: NaN, wrong dtype, shapes that differ, or nothing but zeros expected.
    """
    found = as_array("found", found, np.shape(expected))
    expected = as_array("expected", expected, found.shape)
    size = as_positive("|expected|", float(np.linalg.norm(expected)))
    return float(np.linalg.norm(found - expected)) / size


def gd_beta_estimate(beta: Array, Gamma: Array, X: Array, y: Array) -> Array:
    """One gradient step on the prompt's least squares, from `beta` with matrix step `Gamma`.

    beta - Gamma X^T (X beta - y) / M.

    Args:
        beta: start, (d,).
        Gamma: step, (d, d), any matrix.
        X: covariates, (n, M, d).
        y: labels, (n, M).

    Returns:
        Estimates of the task vectors, (n, d).

    Raises:
        ValueError: shapes that do not fit.

    Source: paper A, the class GD-beta.
    """
    X, y = _prompts(X, y)
    d = X.shape[2]
    beta, Gamma = as_array("beta", beta, (d,)), as_array("Gamma", Gamma, (d, d))
    gradient: Array = np.einsum("nmd,nm->nd", X, X @ beta - y) / X.shape[1]
    return beta - gradient @ Gamma.T


def bayes_estimate(task: RegressionTask, X: Array, y: Array) -> Array:
    """The posterior mean of the task vector: ridge regression centred at beta_star.

    beta_star + (X^T X + sigma^2 Psi^-1)^-1 X^T (y - X beta_star), computed through Psi^(1/2), so
    that singular Psi and sigma = 0 (the limit sigma -> 0) are fine.

    Args:
        task: the prior and the noise level; `task.M` is not used, prompts may have any length.
        X: covariates, (n, M, d).
        y: labels, (n, M).

    Returns:
        Posterior means, (n, d).

    Raises:
        ValueError: shapes that do not fit each other or the task.

    Source: paper A, the Bayes optimal estimator.
    """
    X, y = _prompts(X, y, task.d)
    root = task.root_Psi
    vectors, values = _prompt_spectrum(task, X)
    shrink = np.zeros_like(values)  # (n, d)
    np.divide(1.0, values + task.sigma**2, out=shrink, where=values > 0)
    rhs = np.einsum("nmd,nm->nd", X @ root, y - X @ task.beta_star)
    coordinates = np.einsum("nji,nj->ni", vectors, rhs) * shrink
    found: Array = np.einsum("nij,nj->ni", vectors, coordinates)  # over Psi^(1/2), (n, d)
    return task.beta_star + found @ root


def bayes_risk(task: RegressionTask, n: int, rng: np.random.Generator) -> Estimate:
    """Risk of the Bayes estimator, the floor sigma^2 included, from n prompts.

    Only the covariates are drawn: given X the risk is sigma^2 + tr(H Cov(beta | X)) exactly, which
    has far less variance than squared errors.

    Raises:
        ValueError: n < 2 (no standard error), or rng is no NumPy generator.

    Source: paper A, the Bayes optimal estimator; the conditional covariance of a Gaussian.
    """
    n, rng = as_count("n", n, least=2), as_generator("rng", rng)
    risks = []
    chunk = max(1, 2**22 // (max(task.M, task.d) * task.d))  # arrays of 32 MiB at a time
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        X = rng.standard_normal((size, task.M, task.d)) @ task.root_H
        vectors, values = _prompt_spectrum(task, X)
        left = np.ones_like(values)  # (size, d), the part of each direction that stays unknown
        np.divide(task.sigma**2, values + task.sigma**2, out=left, where=values > 0)
        axes = task.root_H @ task.root_Psi @ vectors  # (size, d, d): columns H^(1/2) Psi^(1/2) v_i
        risks.append((np.square(axes).sum(axis=1) * left).sum(axis=1))
    return Estimate.of(np.concatenate(risks) + task.sigma**2)


def _prompts(X: Array, y: Array, d: int | None = None) -> tuple[Array, Array]:
    X = as_array("X", X, (None, None, d))
    return X, as_array("y", y, X.shape[:2])


def _prompt_spectrum(task: RegressionTask, X: Array) -> tuple[Array, Array]:
    """Eigenvectors (n, d, d) and eigenvalues (n, d) of Psi^(1/2) X^T X Psi^(1/2).

    Rounding dust is set to 0: where a prompt says nothing on a direction, sigma = 0 must not
    divide by it.
    """
    scaled = X @ task.root_Psi
    values, vectors = np.linalg.eigh(np.swapaxes(scaled, 1, 2) @ scaled)
    dust = 1e-12 * task.d * values[:, -1:]
    return vectors, np.where(values > dust, values, 0.0)
