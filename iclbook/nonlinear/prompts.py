"""Patterns, tasks and prompts of the classification in context (chapter nonlinear/patterns)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import helmert

from iclbook.checks import Array, as_array, as_count, as_number, as_positive

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

    mu: ArrayLike
    nu: ArrayLike
    q: ArrayLike

    def __post_init__(self) -> None:
        mu = as_array("mu", self.mu, (None, None))
        nu = as_array("nu", self.nu, (None, mu.shape[1]))
        q = as_array("q", self.q, (None,))
        as_count("M1, the number of rows of mu", len(mu), least=2)
        for name, value in {"mu": mu, "nu": nu, "q": q}.items():
            object.__setattr__(self, name, value)
        norms = self.norms
        if norms.min() == 0:
            raise ValueError("patterns: got one of norm 0, expected none")
        if np.ptp(norms[: len(mu)]) > _TIGHT * norms[0]:
            raise ValueError(f"mu: got rows of norms {norms[: len(mu)]}, expected one norm")
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
        return self.mu.shape[1]

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
        return np.linalg.norm(self.basis, axis=1)


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
    beta = as_positive("beta", beta)
    if dX < M1 + M2:
        raise ValueError(f"M1 + M2: got {M1 + M2} patterns, expected at most dX = {dX}")
    directions = beta * _random_frame(M1 + M2, dX, rng)
    return Patterns(mu=directions[:M1], nu=directions[M1:], q=_random_frame(1, dY, rng)[0])


def out_of_domain(
    patterns: Patterns, coefficients: ArrayLike, rng: np.random.Generator
) -> Patterns:
    """New patterns in the span of the old: mu' = coefficients @ mu, nu' a random rotation of nu.

    Args:
        patterns: the patterns of the training.
        coefficients: k, (M1', M1), with orthonormal rows, which is what keeps mu' orthogonal and
            of the same norm.
        rng: draws the rotation inside the span of nu.

    Raises:
        ValueError: coefficients of another shape, or with rows that are not orthonormal.

    Source: paper B, the out-of-domain patterns.
    """
    k = as_array("coefficients", coefficients, (None, patterns.M1))
    off = np.abs(k @ k.T - np.eye(len(k))).max()
    if off > _TIGHT:
        raise ValueError(
            f"coefficients: got rows whose products differ from those of orthonormal rows by "
            f"{off:.3g}, expected coefficients @ coefficients.T = I, so that the new patterns are "
            "orthogonal and of the same norm"
        )
    return Patterns(
        mu=k @ patterns.mu,
        nu=_random_frame(patterns.M2, patterns.M2, rng) @ patterns.nu,
        q=patterns.q,
    )


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
            f"S1: got {S1} for {M1_new} orthonormal rows of {M1} coefficients, expected "
            f"|S1| <= sqrt(M1 / M1_new) = {math.sqrt(M1 / M1_new):.4g} and fewer rows than "
            "coefficients (or as many, with |S1| = 1)"
        )
    even = np.eye(M1_new) - (1 - math.sqrt(max(least, 0.0))) / M1_new
    root = even if rank == M1_new else helmert(M1_new).T  # else the rests sum to 0 themselves
    # Helmert's basis of the vectors with sum 0: one from an SVD would differ between machines.
    return S1 / M1 + root @ _random_frame(rank, M1 - 1, rng) @ helmert(M1)


def all_tasks(M1: int) -> Indices:
    """All ordered pairs (a, b) of different patterns, (M1 (M1 - 1), 2), counted from 0."""
    M1 = as_count("M1", M1, least=2)
    a, b = np.nonzero(~np.eye(M1, dtype=bool))
    return np.stack([a, b], axis=1)


def training_tasks(
    M1: int, rng: np.random.Generator, fraction: float | None = None
) -> tuple[Indices, Indices]:
    """A random set of tasks to train on that covers all patterns alike, and the tasks held out.

    The patterns are put in a circle in random order; the trained tasks are all pairs at some
    distances round it, drawn at random, so each pattern is as often a as it is b.

    Args:
        M1: number of relevant patterns, at least 2.
        rng: draws order and distances.
        fraction: least share of all tasks to train on; by default the paper's (M1 - 1)^(-1/2).

    Returns:
        trained (t, 2) and held out (h, 2). With M1 < 4, or a fraction near 1, nothing is held out.

    Raises:
        ValueError: M1 < 2, or a fraction below the paper's or above 1.

    Source: paper B, the condition on the training tasks.
    """
    M1 = as_count("M1", M1, least=2)
    least = (M1 - 1) ** -0.5
    fraction = least if fraction is None else as_number("fraction", fraction)
    if not least - 1e-12 <= fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, expected {least:.4g} (the paper's) to 1")
    order = rng.permutation(M1)
    distances = 1 + rng.permutation(M1 - 1)
    chosen = distances[: math.ceil(fraction * (M1 - 1) - 1e-9)]
    place = np.argsort(order)
    tasks = all_tasks(M1)
    apart = (place[tasks[:, 1]] - place[tasks[:, 0]]) % M1
    trained = np.isin(apart, chosen)
    return tasks[trained], tasks[~trained]


def check_coverage(tasks: ArrayLike, M1: int) -> None:
    """Raise ValueError unless tasks meet the paper's condition on the training tasks.

    No task twice, each pattern equally often with the label +1 and -1, as often as any other
    pattern, and at least (M1 - 1)^(-1/2) of all tasks.

    Source: paper B, the condition on the training tasks.
    """
    tasks = as_tasks("tasks", tasks, M1)
    if len(np.unique(tasks, axis=0)) < len(tasks):
        raise ValueError("tasks: got a task more than once, expected different ones")
    counts = np.stack([np.bincount(side, minlength=M1) for side in tasks.T])
    if np.ptp(counts) > 0:
        raise ValueError(
            f"tasks: got the patterns {counts[0].tolist()} times with label +1 and "
            f"{counts[1].tolist()} times with -1, expected each equally often with both"
        )
    share, least = len(tasks) / (M1 * (M1 - 1)), (M1 - 1) ** -0.5
    if share < least - 1e-12:
        raise ValueError(f"tasks: got {share:.4g} of all tasks, expected at least {least:.4g}")


@dataclass(frozen=True, eq=False)
class PromptIndices:
    """n prompts as indices into the patterns: a token is mu_pattern + kappa nu_irrelevant.

    The query is the last column of `pattern`, `irrelevant` and `kappa`. Its label is hidden: the
    embedded label of the query token is 0.
    """

    pattern: Indices
    """Relevant pattern of each token, (n, l + 1)."""
    irrelevant: Indices
    """Irrelevant pattern of each token, (n, l + 1)."""
    kappa: NDArray[np.float32]
    """Weight of the irrelevant pattern, (n, l + 1)."""
    context_label: NDArray[np.int8]
    """Labels of the contexts, +1 or -1, (n, l)."""
    label: NDArray[np.int8]
    """Labels of the queries, +1 or -1, (n,)."""
    task: Indices
    """Which row of the tasks each prompt is about, (n,)."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """n prompts as the model sees them, and what they were made of."""

    tokens: Array
    """Contexts (x; y q), (n, l, dX + dY)."""
    query: Array
    """Queries (x; 0), (n, dX + dY)."""
    label: NDArray[np.int8]
    """Labels of the queries, +1 or -1, (n,). No model may look at them."""
    same: NDArray[np.bool_]
    """Which contexts share the query's relevant pattern, (n, l)."""
    dX: int
    """How many coordinates of a token are the input; the rest are the label."""
    indices: PromptIndices
    """What the tokens were made of."""


def sample_prompts(
    patterns: Patterns,
    tasks: ArrayLike,
    n: int,
    l: int,
    alpha: float,
    rng: np.random.Generator,
    kappa: float = 0.3,
) -> Prompts:
    """Draw n prompts of l contexts; arguments, law and errors are those of `sample_indices`."""
    return build_prompts(
        patterns, sample_indices(patterns.M1, patterns.M2, tasks, n, l, alpha, rng, kappa)
    )


def sample_indices(
    M1: int,
    M2: int,
    tasks: ArrayLike,
    n: int,
    l: int,
    alpha: float,
    rng: np.random.Generator,
    kappa: float = 0.3,
) -> PromptIndices:
    """Draw n prompts as indices, without building their tokens.

    Each prompt is about one task (a, b), uniform among `tasks`. The query shows a or b with
    probability 1/2. A context shows a or b with probability alpha/2 each, and any other relevant
    pattern with the rest, uniformly. The label is +1 on a, -1 on b and a fair coin elsewhere.
    Every token adds an irrelevant pattern, uniform, with a weight uniform on [-kappa, kappa].

    Tasks, patterns, irrelevant parts and coins come from four streams spawned from `rng`, so that
    two settings that differ in alpha alone, say, see the same tasks and irrelevant parts.

    Args:
        M1: number of relevant patterns, at least 2.
        M2: number of irrelevant patterns, at least 1.
        tasks: pairs (a, b) of different patterns, (t, 2), counted from 0.
        n: number of prompts, at least 1.
        l: number of contexts, at least 1.
        alpha: fraction of contexts that show a or b, in (0, 1]; must be 1 if M1 = 2.
        rng: a generator; it is spawned from.
        kappa: largest weight of an irrelevant pattern, at least 0. The paper's figure shows 0.3.

    Raises:
        ValueError: names the argument, what was given and what was expected.

    Source: paper B, the construction of prompts; the law of kappa is this book's choice.
    """
    tasks = as_tasks("tasks", tasks, M1)
    M2, n, l = as_count("M2", M2), as_count("n", n), as_count("l", l)
    alpha, kappa = as_number("alpha", alpha), as_number("kappa", kappa, least=0.0)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, expected a fraction in (0, 1]")
    if alpha < 1 and M1 == 2:
        raise ValueError(f"alpha: got {alpha} with M1 = 2, expected 1: there is no third pattern")
    which, where, beside, coins = rng.spawn(4)
    task = which.integers(len(tasks), size=n)
    side = which.integers(2, size=(n, 1))
    # Slot 0 is a, slot 1 is b, slots 2.. are the other patterns, in each task's own order.
    # Sums and masks instead of np.where, whose branches on random numbers take most of the time.
    u = where.random((n, l), dtype=np.float32)
    slot = (u >= alpha / 2).astype(np.int16)
    if alpha < 1:
        slot += u >= alpha
        stretch = np.float32((M1 - 2) / (1 - alpha))
        slot += ((u - np.float32(alpha)) * stretch).clip(0, M1 - 3).astype(np.int16)
    bits = np.frombuffer(coins.bytes((n * l + 7) // 8), dtype=np.uint8)
    coin = np.unpackbits(bits, count=n * l).reshape(n, l).view(bool)
    minus = (slot == 1) | ((slot > 1) & coin)
    slots = np.concatenate([slot, side], axis=1, dtype=np.int32)
    slots += (M1 * task)[:, None].astype(np.int32)
    weight = beside.random((n, l + 1), dtype=np.float32)
    weight -= np.float32(0.5)
    weight *= np.float32(2 * kappa)
    return PromptIndices(
        pattern=_slots(tasks, M1).ravel().take(slots),
        irrelevant=beside.integers(M2, size=(n, l + 1), dtype=np.int16).astype(np.int64),
        kappa=weight,
        context_label=1 - 2 * minus.view(np.int8),
        label=(1 - 2 * side[:, 0]).astype(np.int8),
        task=task,
    )


def build_prompts(patterns: Patterns, indices: PromptIndices) -> Prompts:
    """The tokens of prompts that were drawn as indices.

    Raises:
        ValueError: indices beyond the patterns.
    """
    check_indices(patterns, indices)
    x = patterns.mu[indices.pattern] + indices.kappa[..., None] * patterns.nu[indices.irrelevant]
    y = indices.context_label[..., None] * patterns.q
    query = np.concatenate([x[:, -1], np.zeros((len(x), patterns.dY))], axis=1)
    return Prompts(
        tokens=np.concatenate([x[:, :-1], y], axis=2),
        query=query,
        label=indices.label,
        same=indices.pattern[:, :-1] == indices.pattern[:, -1:],
        dX=patterns.dX,
        indices=indices,
    )


def check_indices(patterns: Patterns, indices: PromptIndices) -> None:
    """Raise ValueError if the indices go beyond the patterns."""
    highest = indices.pattern.max(), indices.irrelevant.max()
    if highest[0] >= patterns.M1 or highest[1] >= patterns.M2:
        raise ValueError(
            f"indices: got patterns up to {highest[0]} and {highest[1]}, expected below "
            f"M1 = {patterns.M1} and M2 = {patterns.M2}"
        )


def as_tasks(name: str, tasks: ArrayLike, M1: int) -> Indices:
    """Tasks as a (t, 2) array of indices.

    Raises:
        ValueError: no tasks, another shape, an index that is not one of 0..M1-1, or a = b.
    """
    M1 = as_count("M1", M1, least=2)
    given = np.asarray(tasks)
    if given.ndim != 2 or given.shape[1] != 2 or not len(given):
        raise ValueError(f"{name}: got shape {given.shape}, expected (t, 2) with t >= 1")
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{name}: got dtype {given.dtype}, expected integers")
    if given.min() < 0 or given.max() >= M1:
        raise ValueError(f"{name}: got indices {given.min()}..{given.max()}, expected 0..{M1 - 1}")
    if (given[:, 0] == given[:, 1]).any():
        pair = given[given[:, 0] == given[:, 1]][0].tolist()
        raise ValueError(f"{name}: got the task {tuple(pair)}, expected two different patterns")
    return given.astype(np.int64)


def _slots(tasks: Indices, M1: int) -> Indices:
    """For each task its two patterns, then all others, (t, M1)."""
    others = np.ones((len(tasks), M1), dtype=bool)
    np.put_along_axis(others, tasks, values=False, axis=1)
    return np.concatenate([tasks, np.nonzero(others)[1].reshape(len(tasks), M1 - 2)], axis=1)


def _random_frame(rows: int, dimensions: int, rng: np.random.Generator) -> Array:
    """Orthonormal rows in uniformly random directions, (rows, dimensions)."""
    Q, R = np.linalg.qr(rng.standard_normal((dimensions, rows)))
    return (Q * np.sign(np.diag(R))).T  # the signs make the law uniform
