"""Prompts of real pictures: the 8 x 8 digits of scikit-learn (chapter nonlinear/digits)."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from iclbook.checks import Array, as_count, as_generator, as_positive
from iclbook.nonlinear.patterns import Indices, Patterns, as_tasks, circle_tasks
from iclbook.nonlinear.prompts import sample_prompts

_Q = np.eye(8)[0]  # any unit vector would do: every start is the same in all directions of labels


@dataclass(frozen=True, eq=False)
class Digits:
    """Pictures of handwritten digits, and the inputs that are made of them.

    Attributes:
        picture: Grey levels from 0, paper, to 16, ink; (N, 8, 8).
        x: Inputs, (N, 64).
        digit: What each shows, 0..9, (N,).
    """

    picture: Array
    x: Array
    digit: Indices

    def only(self, digits: Collection[int]) -> "Digits":
        """The pictures of some digits; there may be none of a digit."""
        keep = np.isin(self.digit, list(digits))
        return Digits(self.picture[keep], self.x[keep], self.digit[keep])


@dataclass(frozen=True, eq=False)
class DigitPrompts:
    """n prompts of l contexts, all of them pictures; what a model sees is as in `Prompts`.

    The query is the last column of `image`. Its label is hidden: no token holds it.

    Attributes:
        digits: What the images are taken from.
        task: The task (a, b) of each prompt, two digits, (n, 2).
        image: Index of each picture, (n, l + 1).
        context_label: Labels of the contexts, +1 or -1, (n, l).
        label: Labels of the queries, +1 or -1, (n,). No model may look at them.
    """

    digits: Digits
    task: Indices
    image: Indices
    context_label: NDArray[np.int8]
    label: NDArray[np.int8]

    @cached_property
    def digit(self) -> Indices:
        """The digit of each picture, (n, l + 1)."""
        return self.digits.digit[self.image]

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Which contexts show the query's digit, (n, l)."""
        return np.asarray(self.digit[:, :-1] == self.digit[:, -1:])

    @cached_property
    def x(self) -> Array:
        """Inputs of the contexts and, last, of the query, (n, l + 1, 64)."""
        return np.asarray(self.digits.x[self.image])

    @cached_property
    def tokens(self) -> Array:
        """Contexts (x; y q), (n, l, 72), with q a unit vector of 8 coordinates."""
        return np.concatenate([self.x[:, :-1], self.context_label[..., None] * _Q], axis=2)

    @cached_property
    def query(self) -> Array:
        """Queries (x; 0), (n, 72)."""
        return np.pad(self.x[:, -1], [(0, 0), (0, len(_Q))])


def split_digits(rng: np.random.Generator, norm: float = 2.0) -> tuple[Digits, Digits, Digits]:
    """Training, validation and test pictures: half, a quarter and a quarter of each digit.

    An input is the picture less the mean training picture, scaled to a length of `norm`.

    Args:
        rng: deals the 1797 pictures out.
        norm: length of each input, positive.

    Raises:
        ValueError: names the argument, what was given and what was expected.

    Source: Alpaydin and Kaynak (1998), the test set of their optical recognition of digits.
    """
    norm, seed = as_positive("norm", norm), int(as_generator("rng", rng).integers(2**31))
    data = load_digits()
    halve = partial(train_test_split, test_size=0.5, random_state=seed)
    train, rest = halve(np.arange(len(data.target)), stratify=data.target)
    held, test = halve(rest, stratify=data.target[rest])
    x = data.data - data.data[train].mean(axis=0)
    x *= norm / np.linalg.norm(x, axis=1, keepdims=True)
    parts = [Digits(data.images[own], x[own], data.target[own]) for own in (train, held, test)]
    return parts[0], parts[1], parts[2]


def digit_tasks(
    digits: Collection[int], distances: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Ordered pairs of digits to train on, and all others, (t, 2) each.

    The digits stand on a circle in random order. Trained are the pairs (a, b) in which b stands
    some random distances after a: each digit has both labels equally often.

    Args:
        digits: different ones, at least 2.
        distances: number of distances, 1 to len(digits) - 1.
        rng: draws the order and the distances.

    Raises:
        ValueError: distances out of range.
    """
    order = as_generator("rng", rng).permutation(np.array(list(digits), dtype=np.int64))
    chosen = 1 + rng.permutation(len(order) - 1)[: as_count("distances", distances)]
    if len(chosen) < distances:
        raise ValueError(f"distances: got {distances}, expected at most {len(order) - 1}")
    trained, others = circle_tasks(len(order), chosen.tolist())
    return order[trained], order[others]


def digit_prompts(
    digits: Digits, tasks: ArrayLike, n: int, l: int, alpha: float, rng: np.random.Generator
) -> DigitPrompts:
    """Draw n prompts of l contexts by the law of `sample_prompts`, with pictures for patterns.

    The relevant patterns are the digits of which there are pictures. Each token shows a picture of
    its digit, uniform among all, but no context shows the very picture of the query.

    Args:
        digits: at least 2 pictures of each digit.
        tasks: pairs (a, b) of different digits, (t, 2).
        n: number of prompts, at least 1.
        l: number of contexts, at least 1.
        alpha: fraction of contexts that show a or b, in (0, 1]; must be 1 for two digits.
        rng: a generator; it is spawned from.

    Raises:
        ValueError: names the argument, what was given and what was expected.
    """
    classes, counts = np.unique(digits.digit, return_counts=True)
    pairs = as_tasks("tasks", tasks, 10)
    if len(classes) < 2 or counts.min() < 2 or not np.isin(pairs, classes).all():
        raise ValueError(
            f"digits: got {counts.tolist()} pictures of {classes.tolist()}, expected 2 of each "
            "digit at least, and of all digits of the tasks"
        )
    places = np.searchsorted(classes, pairs)
    law, pictures = as_generator("rng", rng).spawn(2)
    frame = np.eye(len(classes) + 1)  # patterns of which only the indices are used
    drawn = sample_prompts(Patterns(frame[:-1], frame[-1:], _Q), places, n, l, alpha, law)
    # The k-th picture of a digit; among the others than the query's if it shows the query's digit.
    others = counts[drawn.pattern]
    others[:, :-1] -= drawn.same
    k = (pictures.random(drawn.pattern.shape) * others).astype(np.int64)
    k[:, :-1] += drawn.same & (k[:, :-1] >= k[:, -1:])
    start = np.cumsum(counts) - counts
    image = np.argsort(digits.digit, kind="stable")[start[drawn.pattern] + k]
    return DigitPrompts(digits, classes[drawn.task], image, drawn.context_label, drawn.label)
