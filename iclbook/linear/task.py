"""In-context linear regression: the task distribution and its prompts (chapter linear/prompts)."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from iclbook.checks import Array, as_array, as_count, as_covariance, as_generator, as_number


@dataclass(frozen=True, eq=False)
class Prompts:
    """n prompts, each with M labelled pairs, a query, and the query's hidden label.

    Attributes:
        X: Covariates, (n, M, d).
        y: Labels, (n, M).
        x: Queries, (n, d).
        target: The queries' labels, noise included, (n,).
        beta: The task vectors behind the prompts, (n, d). No estimator may look at them.
    """

    X: Array
    y: Array
    x: Array
    target: Array
    beta: Array


@dataclass(frozen=True, eq=False)
class RegressionTask:
    """The distribution of tasks and prompts of paper A.

    A task is a vector beta ~ N(beta_star, Psi) in R^d. A prompt holds M pairs with covariates
    x_i ~ N(0, H) and labels y_i = <beta, x_i> + eps_i, eps_i ~ N(0, sigma^2), and a query drawn
    alike.

    Attributes:
        H: covariance of the covariates, (d, d), positive semi-definite.
        Psi: covariance of the task vectors, (d, d), positive semi-definite.
        beta_star: mean of the task vectors, (d,): what all tasks share.
        sigma: standard deviation of the label noise, at least 0, in units of a label.
        M: number of labelled pairs in a prompt, at least 1.

    Raises:
        ValueError: names the argument, what was given and what was expected.

    Source: Zhang, Wu, Bartlett (NeurIPS 2024), the problem setup.
    """

    H: Array
    Psi: Array
    beta_star: Array
    sigma: float
    M: int
    root_H: Array = field(init=False, repr=False)
    """Symmetric square root of H, (d, d)."""
    root_Psi: Array = field(init=False, repr=False)
    """Symmetric square root of Psi, (d, d)."""

    def __post_init__(self) -> None:
        H = as_covariance("H", self.H)
        Psi = as_covariance("Psi", self.Psi, len(H))
        checked = {
            "H": H,
            "Psi": Psi,
            "beta_star": as_array("beta_star", self.beta_star, (len(H),)),
            "sigma": as_number("sigma", self.sigma, least=0.0),
            "M": as_count("M", self.M),
            "root_H": symmetric_root(H),
            "root_Psi": symmetric_root(Psi),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def isotropic(cls, d: int, M: int, psi: float, signal: float, sigma: float) -> Self:
        """H = I, Psi = psi I, and beta_star of norm `signal` along the first axis.

        Raises:
            ValueError: d < 1, M < 1, or psi, signal or sigma negative or not finite.
        """
        d = as_count("d", d)
        beta_star = np.zeros(d)
        beta_star[0] = as_number("signal", signal, least=0.0)
        return cls(np.eye(d), as_number("psi", psi, least=0.0) * np.eye(d), beta_star, sigma, M)

    @classmethod
    def random(
        cls, d: int, M: int, rng: np.random.Generator, *, sigma: float = 0.5, decay: float = 1.0
    ) -> Self:
        """A task without symmetry: H and Psi are general, and do not commute.

        Shared and own part of the task carry label variance 1 each: beta_star^T H beta_star = 1
        and tr(H Psi) = 1. H is a Wishart matrix with d degrees of freedom over d, plus 0.3 I. Psi
        has a random frame, and eigenvalues that fall like i^-decay.

        Raises:
            ValueError: d < 1, M < 1, sigma or decay negative or not finite, rng no generator.
        """
        d, rng = as_count("d", d), as_generator("rng", rng)
        A, B = rng.standard_normal((2, d, d))
        H, frame = A @ A.T / d + 0.3 * np.eye(d), np.linalg.qr(B)[0]
        Psi = frame * np.arange(1.0, d + 1) ** -as_number("decay", decay, least=0.0) @ frame.T
        beta_star = rng.standard_normal(d)
        Psi, beta_star = Psi / np.trace(H @ Psi), beta_star / np.sqrt(beta_star @ H @ beta_star)
        return cls(H, Psi, beta_star, sigma, M)

    @property
    def d(self) -> int:
        """Dimension of the covariates."""
        return len(self.beta_star)

    @property
    def phi(self) -> Array:
        """Eigenvalues of H^(1/2) Psi H^(1/2), (d,), ascending.

        They are the label variances that the task's own part carries, direction by direction.
        """
        sizes: Array = np.square(np.linalg.svd(self.root_H @ self.root_Psi, compute_uv=False))
        return sizes[::-1]

    @property
    def tau(self) -> float:
        """tr(H Psi) + sigma^2: the variance of a label around <beta_star, x>."""
        return float(self.phi.sum()) + self.sigma**2

    def sample(self, n: int, rng: np.random.Generator) -> Prompts:
        """Draw n independent prompts.

        Task vectors, covariates, noise and queries come from four streams spawned from `rng`, so
        that two settings that differ in sigma alone, say, see the same tasks and covariates.

        Raises:
            ValueError: n < 1, or rng is no NumPy generator.
        """
        n = as_count("n", n)
        tasks, data, noise, queries = as_generator("rng", rng).spawn(4)
        beta = self.beta_star + tasks.standard_normal((n, self.d)) @ self.root_Psi  # (n, d)
        X = data.standard_normal((n, self.M, self.d)) @ self.root_H  # (n, M, d)
        x = queries.standard_normal((n, self.d)) @ self.root_H  # (n, d)
        eps = self.sigma * noise.standard_normal((n, self.M + 1))  # (n, M + 1)
        y = (X @ beta[:, :, None])[:, :, 0] + eps[:, :-1]  # (n, M)
        target = (x * beta).sum(axis=1) + eps[:, -1]  # (n,)
        return Prompts(X=X, y=y, x=x, target=target, beta=beta)


def symmetric_root(A: Array) -> Array:
    """The symmetric positive semi-definite square root of A, (d, d), read-only.

    Eigenvalues at the level of rounding count as 0: the root of 1e-17 would be 3e-9.
    """
    values, vectors = np.linalg.eigh(A)
    dust = 4 * len(A) * np.finfo(np.float64).eps * values[-1]
    root: Array = (vectors * np.sqrt(np.where(values > dust, values, 0.0))) @ vectors.T
    root.flags.writeable = False
    return root
