"""Patterns and tasks of the classification in context (chapter nonlinear/patterns)."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import helmert

from iclbook.checks import Array, as_array, as_count, as_generator, as_number, as_positive

Indices = NDArray[np.int64]
_TIGHT = 1e-8  # how far from orthogonal or from equal norm rounding may leave patterns


@dataclass(frozen=True, eq=False)
class Patterns:
    """Orthogonal patterns of the inputs, and the embedding of a label.

    Attributes:
        mu: relevant patterns, (M1, dX), orthogonal, of one norm beta.
        nu: irrelevant patterns, (M2, dX), orthogonal to each other and to mu, not zero.
        q: a label +1 or -1 is embedded as +q or -q, (dY,), not zero.

    Raises:
        ValueError: fewer than 2 relevant patterns, or patterns that are not as above.

    Source: Li, Wang, Lu, Cui, Chen (ICML 2024), the data model.
    """

    mu: Array
    nu: Array
    q: Array

    def __post_init__(self) -> None:
        mu = as_array("mu", self.mu, (None, None))
        nu = as_array("nu", self.nu, (None, mu.shape[1]))
        q = as_array("q", self.q, (None,))
        as_count("M1, the number of rows of mu", len(mu), least=2)
        for name, value in {"mu": mu, "nu": nu, "q": q}.items():
            object.__setattr__(self, name, value)
        norms = self.norms
        if norms.min() == 0 or np.ptp(norms[: len(mu)]) > _TIGHT * norms[0]:
            raise ValueError(f"patterns: got norms {norms}, expected none 0, and one norm for mu")
        unit = self.basis / norms[:, None]
        overlap = np.abs(unit @ unit.T - np.eye(len(unit))).max()
        if overlap > _TIGHT:
            raise ValueError(
                f"patterns: got a cosine of {overlap:.3g} between two, expected orthogonal ones"
            )

    @property
    def M1(self) -> int:
        """Number of relevant patterns."""
        return len(self.mu)

    @property
    def M2(self) -> int:
        """Number of irrelevant patterns."""
        return len(self.nu)

    @property
    def dX(self) -> int:
        """Dimension of an input."""
        return int(self.mu.shape[1])

    @property
    def dY(self) -> int:
        """Dimension of an embedded label."""
        return len(self.q)

    @property
    def beta(self) -> float:
        """Norm of a relevant pattern."""
        return float(self.norms[0])

    @property
    def basis(self) -> Array:
        """All patterns as tokens, (M1 + M2 + 1, dX + dY): the rows (mu; 0), (nu; 0), (0; q)."""
        x = np.concatenate([self.mu, self.nu])
        basis = np.zeros((len(x) + 1, self.dX + self.dY))
        basis[:-1, : self.dX] = x
        basis[-1, self.dX :] = self.q
        return basis

    @property
    def norms(self) -> Array:
        """Norms of the rows of `basis`, (M1 + M2 + 1,)."""
        return np.asarray(np.linalg.norm(self.basis, axis=1))


def orthogonal_patterns(
    M1: int, M2: int, dX: int, dY: int, beta: float, rng: np.random.Generator
) -> Patterns:
    """Patterns in uniformly random directions: mu and nu of norm beta, q of norm 1.

    Raises:
        ValueError: M1 < 2, M2 < 1, dY < 1, beta not positive, or M1 + M2 > dX.

    Source: paper B, the data model. That nu has the norm of mu is this book's choice; the paper
    bounds its weight kappa only.
    """
    M1, M2 = as_count("M1", M1, least=2), as_count("M2", M2)
    dX, dY = as_count("dX", dX), as_count("dY", dY)
    if dX < M1 + M2:
        raise ValueError(f"M1 + M2: got {M1 + M2} patterns, expected at most dX = {dX}")
    directions = as_positive("beta", beta) * _random_frame(M1 + M2, dX, rng)
    return Patterns(mu=directions[:M1], nu=directions[M1:], q=_random_frame(1, dY, rng)[0])


def out_of_domain(
    patterns: Patterns, coefficients: ArrayLike, rng: np.random.Generator
) -> Patterns:
    """New patterns in the span of the old: mu' = coefficients @ mu, nu' a random rotation of nu.

    Args:
        patterns: the patterns of the training.
        coefficients: k, (M1', M1), with orthogonal rows of one norm, which is what keeps mu'
            orthogonal and of one norm. The paper's have norm 1: then mu' has the norm of mu.
        rng: draws the rotation inside the span of nu.

    Raises:
        ValueError: coefficients of another shape, or with rows that are not as above.

    Source: paper B, the out-of-domain patterns.
    """
    k = as_array("coefficients", coefficients, (None, patterns.M1))
    products = k @ k.T
    off = np.abs(products - products[0, 0] * np.eye(len(k))).max()
    if off > _TIGHT * products[0, 0] or products[0, 0] == 0:
        raise ValueError(
            f"coefficients: got rows with products {products.tolist()}, expected orthogonal ones "
            "of one norm, as the new patterns must be"
        )
    turn = _random_frame(patterns.M2, patterns.M2, as_generator("rng", rng))
    return Patterns(mu=k @ patterns.mu, nu=turn @ patterns.nu, q=patterns.q)


def coefficients_with_sum(M1_new: int, M1: int, S1: float, rng: np.random.Generator) -> Array:
    """M1_new orthonormal rows of M1 coefficients, each row with the sum S1, else uniformly random.

    Each row is (S1 / M1) (1, ..., 1) plus a rest with sum 0, so the rests have the Gram matrix
    I - (S1^2 / M1) J with J all ones. It must have no negative eigenvalue and fit into the M1 - 1
    dimensions of sum 0: M1_new S1^2 <= M1, and M1_new < M1 (or M1_new = M1 with S1 = +-1).

    Returns:
        coefficients, (M1_new, M1), for `out_of_domain`.

    Raises:
        ValueError: no such rows exist.

    Source: derived in this book.
    """
    M1_new, M1 = as_count("M1_new", M1_new, least=2), as_count("M1", M1, least=2)
    S1 = as_number("S1", S1)
    least = 1 - M1_new * S1**2 / M1  # the eigenvalue of (1, ..., 1); all others are 1
    rank = M1_new - (abs(least) < 1e-12)
    if least < -1e-12 or rank > M1 - 1:
        raise ValueError(
            f"S1: got {S1} for {M1_new} orthonormal rows of {M1} coefficients, expected at most "
            f"{math.sqrt(M1 / M1_new):.4g} and fewer rows than coefficients (or |S1| = 1)"
        )
    even = np.eye(M1_new) - (1 - math.sqrt(max(least, 0.0))) / M1_new
    root = even if rank == M1_new else helmert(M1_new).T  # else the rests sum to 0 themselves
    # Helmert's basis of the vectors with sum 0: one from an SVD would differ between machines.
    return np.asarray(S1 / M1 + root @ _random_frame(rank, M1 - 1, rng) @ helmert(M1))


def all_tasks(M1: int) -> Indices:
    """All ordered pairs (a, b) of different patterns, (M1 (M1 - 1), 2), counted from 0."""
    M1 = as_count("M1", M1, least=2)
    a, b = np.nonzero(~np.eye(M1, dtype=bool))
    return np.stack([a, b], axis=1)


def circle_tasks(M1: int, distances: Collection[int]) -> tuple[Indices, Indices]:
    """The tasks (a, b) in which b stands at some distances after a on a circle, and all others.

    Each pattern is as often a as it is b, so the first kind can be trained.

    Args:
        M1: number of relevant patterns, at least 2; they stand on the circle in their own order.
        distances: different ones of 1..M1-1. The paper asks for sqrt(M1 - 1) of them at least.

    Returns:
        chosen (t, 2) and others (h, 2).

    Raises:
        ValueError: M1 < 2, or distances that are not as above.

    Source: derived in this book, for the paper's condition on the training tasks.
    """
    tasks = all_tasks(M1)
    if not set(distances) <= set(range(1, M1)) or len(set(distances)) < len(distances):
        raise ValueError(f"distances: got {distances}, expected different ones of 1..{M1 - 1}")
    chosen = np.isin((tasks[:, 1] - tasks[:, 0]) % M1, list(distances))
    return tasks[chosen], tasks[~chosen]


@dataclass(frozen=True, eq=False)
class World:
    """What a model is trained and tested in.

    Attributes:
        patterns: of the inputs and the labels.
        trained: the tasks (a, b) to train on, (t, 2), at least one. `covered` says whether they
            meet the paper's condition; one may also train where they do not.
        held_out: tasks not trained, for the in-domain error, (h, 2); there may be none.

    Raises:
        ValueError: tasks that are no pairs of the patterns, or a task twice.
    """

    patterns: Patterns
    trained: Indices
    held_out: Indices

    def __post_init__(self) -> None:
        M1 = self.patterns.M1
        trained = as_tasks("trained", self.trained, M1)
        held_out = (
            as_tasks("held_out", self.held_out, M1) if np.size(self.held_out) else trained[:0]
        )
        both = np.concatenate([trained, held_out])
        if len(np.unique(both, axis=0)) < len(both):
            raise ValueError("held_out: got a task twice, expected each once, trained or held out")
        object.__setattr__(self, "trained", trained)
        object.__setattr__(self, "held_out", held_out)

    @property
    def covered(self) -> bool:
        """Whether the trained tasks meet the paper's condition.

        Each pattern is as often a as it is b, as often as any other pattern, and at least the
        share (M1 - 1)^(-1/2) of all tasks is trained.
        """
        M1 = self.patterns.M1
        counts = [np.bincount(side, minlength=M1) for side in self.trained.T]
        return bool(np.ptp(counts) == 0 and counts[0][0] >= (M1 - 1) ** 0.5 - 1e-9)

    @property
    def met(self) -> Indices:
        """In how many orders, 0 to 2, each pair of patterns is trained, (M1, M1), symmetric."""
        once = np.zeros((self.patterns.M1, self.patterns.M1), dtype=np.int64)
        once[tuple(self.trained.T)] = 1
        return once + once.T


def draw_world(
    rng: np.random.Generator,
    *,
    M1: int = 6,
    M2: int = 24,
    dX: int = 56,
    dY: int = 8,
    beta: float = 1.0,
    distances: Collection[int] | None = None,
) -> World:
    """Draw patterns, and which tasks are trained; they come from streams of their own.

    The trained tasks are `circle_tasks`: those in which b stands at some distances after a. They
    meet the paper's condition. The place of a pattern on the circle needs no draw, since the
    patterns themselves are drawn alike.

    Args:
        rng: a generator; it is spawned from.
        M1: number of relevant patterns, at least 2. With M1 < 4 nothing is held out.
        M2: number of irrelevant patterns, at least 1.
        dX: dimension of an input, at least M1 + M2.
        dY: dimension of an embedded label, at least 1.
        beta: norm of mu and nu, positive.
        distances: different ones of 1..M1-1; by default drawn, as few as the paper's condition
            allows, sqrt(M1 - 1) rounded up.

    Raises:
        ValueError: names the argument, what was given and what was expected.

    Source: paper B, the data model and the condition on the training tasks.
    """
    for_patterns, for_tasks = as_generator("rng", rng).spawn(2)
    patterns = orthogonal_patterns(M1, M2, dX, dY, beta, for_patterns)
    if distances is None:
        distances = (1 + for_tasks.permutation(M1 - 1)[: math.isqrt(M1 - 2) + 1]).tolist()
    return World(patterns, *circle_tasks(M1, distances))


def as_tasks(name: str, tasks: ArrayLike, M1: int) -> Indices:
    """Tasks as a (t, 2) array of indices, t at least 1.

    Raises:
        ValueError: another shape, an index that is not one of 0..M1-1, or a = b.
    """
    given = as_array(name, tasks, (None, 2))
    wrong = (given != given.round()) | (given < 0) | (given >= M1) | (given == given[:, ::-1])
    if wrong.any():
        raise ValueError(
            f"{name}: got the task {given[wrong.any(axis=1)][0].tolist()}, expected two different "
            f"integers of 0..{M1 - 1}"
        )
    return given.astype(np.int64)


def _random_frame(rows: int, dimensions: int, rng: np.random.Generator) -> Array:
    """Orthonormal rows in uniformly random directions, (rows, dimensions)."""
    Q, R = np.linalg.qr(rng.standard_normal((dimensions, rows)))
    return (Q * np.sign(np.diag(R))).T  # the signs make the law uniform
