"""Prompts of the classification in context (chapter nonlinear/patterns)."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from iclbook.checks import Array, as_count, as_generator, as_number
from iclbook.nonlinear.patterns import Indices, Patterns, as_tasks

Contexts = Literal["independent", "guaranteed"] | ArrayLike


@dataclass(frozen=True, eq=False)
class Prompts:
    """n prompts of l contexts: what they were made of, and, made when asked for, their tokens.

    A token shows mu_pattern + kappa nu_irrelevant. The query is the last column of `pattern`,
    `irrelevant` and `kappa`. Its label is hidden: no token holds it.

    Attributes:
        patterns: What the indices count.
        task: The task (a, b) of each prompt, (n, 2).
        pattern: Relevant pattern of each token, (n, l + 1).
        irrelevant: Irrelevant pattern of each token, (n, l + 1).
        kappa: Weight of the irrelevant pattern, (n, l + 1).
        context_label: Labels of the contexts, +1 or -1, (n, l).
        label: Labels of the queries, +1 or -1, (n,). No model may look at them.

    Raises:
        ValueError: arrays that do not fit together or go beyond the patterns, labels that are not
            +1 or -1, weights that are NaN or infinite.
    """

    patterns: Patterns
    task: Indices
    pattern: NDArray[np.integer]
    irrelevant: NDArray[np.integer]
    kappa: NDArray[np.float32]
    context_label: NDArray[np.int8]
    label: NDArray[np.int8]

    def __post_init__(self) -> None:
        n, l, *_ = (*self.pattern.shape, 0, 0)
        for name, value, shape, low, high in (
            ("pattern", self.pattern, (n, l), 0, self.patterns.M1 - 1),
            ("task", self.task, (n, 2), 0, self.patterns.M1 - 1),
            ("irrelevant", self.irrelevant, (n, l), 0, self.patterns.M2 - 1),
            ("kappa", self.kappa, (n, l), -1e30, 1e30),
            ("context_label, absolute", np.abs(self.context_label), (n, l - 1), 1, 1),
            ("label, absolute", np.abs(self.label), (n,), 1, 1),
        ):
            inside = value.size and low <= value.min() <= value.max() <= high  # NaN is not
            if value.shape != shape or not inside:
                raise ValueError(
                    f"{name}: got shape {value.shape}, values {np.unique(value)}, expected shape "
                    f"{shape}, not empty, values {low}..{high}"
                )

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Which contexts share the query's relevant pattern, (n, l)."""
        return np.asarray(self.pattern[:, :-1] == self.pattern[:, -1:])

    @cached_property
    def x(self) -> Array:
        """Inputs of the contexts and, last, of the query, (n, l + 1, dX)."""
        mu, nu = self.patterns.mu, self.patterns.nu
        return np.asarray(mu[self.pattern] + self.kappa[..., None] * nu[self.irrelevant])

    @cached_property
    def tokens(self) -> Array:
        """Contexts (x; y q), (n, l, dX + dY)."""
        labels = self.context_label[..., None] * self.patterns.q  # (n, l, dY)
        return np.concatenate([self.x[:, :-1], labels], axis=2)

    @cached_property
    def query(self) -> Array:
        """Queries (x; 0), (n, dX + dY)."""
        return np.pad(self.x[:, -1], [(0, 0), (0, self.patterns.dY)])

    def pool(self, weights: Array) -> Array:
        """Sum of the context tokens with weights (n, l), such as attention: (n, dX + dY)."""
        return (weights[:, None] @ self.tokens)[:, 0]


def sample_prompts(
    patterns: Patterns,
    tasks: ArrayLike,
    n: int,
    l: int,
    alpha: float,
    rng: np.random.Generator,
    kappa: float = 0.3,
    contexts: Contexts = "independent",
) -> Prompts:
    """Draw n prompts of l contexts.

    Each prompt is about one task (a, b), uniform among `tasks`. The query shows a or b with
    probability 1/2. A context shows a or b with probability alpha/2 each, and any other relevant
    pattern with the rest, uniformly. The label is +1 on a, -1 on b and a fair coin elsewhere.
    Every token adds an irrelevant pattern, uniform, with a weight uniform on [-kappa, kappa].

    Tasks, patterns, irrelevant parts and coins come from four streams spawned from `rng`, so that
    two settings that differ in alpha alone, say, see the same tasks and irrelevant parts.

    Args:
        patterns: at most 32767 of each kind.
        tasks: pairs (a, b) of different patterns, (t, 2), counted from 0.
        n: number of prompts, at least 1.
        l: number of contexts, at least 1.
        alpha: fraction of contexts that show a or b, in (0, 1]; must be 1 if M1 = 2.
        rng: a generator; it is spawned from.
        kappa: largest weight of an irrelevant pattern, at least 0. The paper's figure shows 0.3.
        contexts: the law of k, the number of contexts with the query's pattern. Given k, they
            stand anywhere, and the other contexts are drawn as above, given that they do not show
            the query's pattern.
            "independent": k is Binomial(l, alpha/2), which makes the contexts independent.
            "guaranteed": that law given k >= alpha l / 2, as the theorems assume of test prompts.
            An array (n,) of numbers in 0..l: k itself, one for each prompt.

    Raises:
        ValueError: names the argument, what was given and what was expected.

    Source: paper B, the construction of prompts; the law of kappa is this book's choice.
    """
    M1, M2 = patterns.M1, patterns.M2
    tasks = as_tasks("tasks", tasks, M1)
    if max(M1, M2) >= 2**15 or 2 * len(tasks) * M1 >= 2**31:  # counted in 16 and 32 bits below
        raise ValueError(
            f"patterns: got M1 = {M1}, M2 = {M2} with {len(tasks)} tasks, expected at most 32767 "
            "of each kind, and M1 times the number of tasks below 2^30"
        )
    n, l = as_count("n", n), as_count("l", l)
    alpha, kappa = _as_alpha(alpha, M1), as_number("kappa", kappa, least=0.0)
    which, where, beside, coins = as_generator("rng", rng).spawn(4)
    task = which.integers(len(tasks), size=n)
    side = which.integers(2, size=n)  # the query shows tasks[task, side]
    u = where.random((n, l), dtype=np.float32)
    same, pair = u < alpha / 2, alpha
    if not isinstance(contexts, str) or contexts != "independent":
        k = _numbers_of_same(contexts, n, l, alpha, where)
        same = where.random((n, l)).argsort(axis=1).argsort(axis=1) < k[:, None]
        u[same], pair = 0, alpha / (2 - alpha)
    # Slot 0 is the query's pattern, 1 its opponent, 2.. are the others, in each task's own order.
    # Sums and masks instead of np.where, whose branches on random numbers take most of the time.
    other = u >= pair
    slot = (~same).astype(np.int16) + other
    if alpha < 1:
        stretch = np.float32((M1 - 2) / (1 - pair))
        slot += ((u - np.float32(pair)) * stretch).clip(0, M1 - 3).astype(np.int16)
    bits = np.frombuffer(coins.bytes((n * l + 7) // 8), dtype=np.uint8)
    minus = np.unpackbits(bits, count=n * l).reshape(n, l).view(bool) & other
    minus |= (same == side[:, None].astype(bool)) & ~other  # the query's label or its opposite
    slots = np.zeros((n, l + 1), dtype=np.int32)  # the query's slot, the last, is 0
    slots[:, :-1] = slot
    slots += (M1 * (task + len(tasks) * side)).astype(np.int32)[:, None]
    pattern = _slots(np.concatenate([tasks, tasks[:, ::-1]]), M1).ravel().take(slots)
    weight = np.float32(2 * kappa) * (beside.random((n, l + 1), np.float32) - np.float32(0.5))
    irrelevant = beside.integers(M2, size=(n, l + 1), dtype=np.int16)
    context_label, label = 1 - 2 * minus.view(np.int8), (1 - 2 * side).astype(np.int8)
    return Prompts(patterns, tasks[task], pattern, irrelevant, weight, context_label, label)


def least_error(M1: int, l: int, alpha: float, n: int, rng: np.random.Generator) -> float:
    """The least error of any rule on independent prompts, if all tasks are equally likely.

    It errs only where no context shows the query's pattern, which has probability
    (1 - alpha/2)^l. There the label is +1 with odds S_+ : S_-, sums over the possible opponents k,
    whose contexts all have one label, of (alpha (M1 - 2) / (1 - alpha))^(contexts that show k).

    Args:
        M1: number of relevant patterns, at least 2.
        l: number of contexts, at least 1.
        alpha: fraction of contexts that show a or b, in (0, 1]; must be 1 if M1 = 2.
        n: number of draws of the counts, for the mean of min(S_+, S_-) / (S_+ + S_-).
        rng: draws them.

    Raises:
        ValueError: M1, l or n below its least, alpha outside (0, 1], or below 1 with M1 = 2.

    Source: derived in this book.
    """
    M1, l, n = as_count("M1", M1, least=2), as_count("l", l), as_count("n", n)
    if (alpha := _as_alpha(alpha, M1)) == 1:
        return 0.0
    beside = np.full(2 * (M1 - 2), (1 - alpha) / (M1 - 2) / 2)
    law = np.concatenate([[alpha / 2], beside]) / (1 - alpha / 2)
    # The label is +1, say: the opponent's are all -1. Then each other pattern's of both kinds.
    counts = as_generator("rng", rng).multinomial(l, law, n)
    opponent, plus, minus = np.split(counts, [1, M1 - 1], axis=1)
    ratio = alpha * (M1 - 2) / (1 - alpha)
    grow = ratio ** (plus + minus)
    S_plus = ratio ** opponent[:, 0] + (grow * (plus == 0)).sum(axis=1)
    S_minus = (opponent[:, 0] == 0) + (grow * (minus == 0)).sum(axis=1)
    share = np.minimum(S_plus, S_minus) / (S_plus + S_minus)
    return float((1 - alpha / 2) ** l * share.mean())


def _slots(tasks: Indices, M1: int) -> NDArray[np.int16]:
    """For each task its two patterns, then all others, (t, M1)."""
    others = np.ones((len(tasks), M1), dtype=bool)
    np.put_along_axis(others, tasks, values=False, axis=1)
    rest = np.nonzero(others)[1].reshape(len(tasks), M1 - 2)
    return np.concatenate([tasks, rest], axis=1, dtype=np.int16, casting="unsafe")


def _as_alpha(alpha: float, M1: int) -> float:
    alpha = as_number("alpha", alpha)
    if not 0 < alpha <= 1 or (alpha < 1 and M1 == 2):
        raise ValueError(f"alpha: got {alpha} with M1 = {M1}, expected in (0, 1], and 1 if M1 = 2")
    return alpha


def _numbers_of_same(
    contexts: Contexts, n: int, l: int, alpha: float, rng: np.random.Generator
) -> Indices:
    """Numbers of contexts with the query's pattern, (n,): as given, or drawn if guaranteed."""
    if isinstance(contexts, str) and contexts == "guaranteed":
        law = binom.pmf(np.arange(l + 1), l, alpha / 2)
        law[: math.ceil(alpha * l / 2 - 1e-9)] = 0
        return rng.choice(l + 1, size=n, p=law / law.sum())
    k = np.asarray(contexts)
    if k.shape != (n,) or k.dtype.kind not in "iu" or k.min() < 0 or k.max() > l:
        raise ValueError(
            f"contexts: got {contexts!r}, expected 'independent', 'guaranteed' or {n} of 0..{l}"
        )
    return k
