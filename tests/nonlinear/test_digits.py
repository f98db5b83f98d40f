"""Prompts of digits: the split, the law against that of the patterns, and what may not be asked."""

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chisquare
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from iclbook.nonlinear import OneLayerTransformer, all_tasks
from iclbook.nonlinear.classical import LEARNERS, classical_predictions
from iclbook.nonlinear.digits import (
    DigitPrompts,
    Digits,
    digit_prompts,
    digit_tasks,
    split_digits,
)
from iclbook.streams import torch_stream


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@cache
def split() -> tuple[Digits, Digits, Digits]:
    return split_digits(rng(3))


def draw(n: int = 2000, l: int = 10, alpha: float = 0.7, **changes: Any) -> DigitPrompts:  # noqa: ANN401
    options: dict[str, Any] = {
        "digits": split()[0], "tasks": all_tasks(10), "rng": rng(), **changes
    }  # fmt: skip
    return digit_prompts(n=n, l=l, alpha=alpha, **options)


def test_the_three_parts_deal_out_all_pictures_each_once_and_keep_the_shares_of_digits() -> None:
    data = load_digits()
    found = np.concatenate([part.picture.reshape(-1, 64) for part in split()])
    assert len(np.unique(data.data, axis=0)) == len(data.data)  # so pictures can be told apart
    np.testing.assert_array_equal(
        np.unique(found, axis=0, return_counts=True)[1], np.ones(len(data.data))
    )
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(data.data, axis=0))
    for part, share in zip(split(), (0.5, 0.25, 0.25), strict=True):
        expected = share * np.bincount(data.target)
        assert np.abs(np.bincount(part.digit) - expected).max() <= 1


def test_each_picture_keeps_its_digit() -> None:
    data = load_digits()
    pairs = zip(data.images, data.target, strict=True)
    digit_of = {picture.tobytes(): digit for picture, digit in pairs}
    for part in split():
        assert [digit_of[picture.tobytes()] for picture in part.picture] == part.digit.tolist()


@pytest.mark.parametrize("norm", [2.0, 0.5])
def test_inputs_are_pictures_less_the_mean_of_training_of_one_length(norm: float) -> None:
    train, *others = split_digits(rng(3), norm)
    mean = train.picture.mean(axis=0).ravel()
    for part in (train, *others):
        np.testing.assert_allclose(np.linalg.norm(part.x, axis=1), norm)
        centred = part.picture.reshape(-1, 64) - mean
        cosine = (part.x * centred).sum(axis=1) / np.linalg.norm(centred, axis=1) / norm
        np.testing.assert_allclose(cosine, 1)


def test_the_split_follows_its_generator() -> None:
    again, other = split_digits(rng(3))[2], split_digits(rng(4))[2]
    np.testing.assert_array_equal(again.picture, split()[2].picture)
    assert not np.array_equal(other.digit, again.digit)


def test_only_keeps_the_pictures_of_some_digits() -> None:
    few = split()[0].only([7, 2])
    keep = np.isin(split()[0].digit, [2, 7])
    np.testing.assert_array_equal(few.x, split()[0].x[keep])
    np.testing.assert_array_equal(few.picture, split()[0].picture[keep])
    assert set(few.digit) == {2, 7}
    assert set(few.only([3, 2]).digit) == {2}


@pytest.mark.parametrize(("digits", "distances"), [(range(10), 4), ([8, 1, 5, 0, 3], 2)])
def test_tasks_are_all_pairs_and_trained_ones_have_each_digit_equally_often_on_both_sides(
    digits: Any,  # noqa: ANN401
    distances: int,
) -> None:
    trained, others = digit_tasks(digits, distances, rng())
    pairs = {(a, b) for a in digits for b in digits if a != b}
    both = np.concatenate([trained, others]).tolist()
    assert len(both) == len(pairs)
    assert {tuple(pair) for pair in both} == pairs
    for side in trained.T:
        assert np.bincount(side)[list(digits)].tolist() == [distances] * len(digits)
    assert not np.array_equal(digit_tasks(digits, distances, rng(1))[0], trained)


def test_labels_and_numbers_of_contexts_follow_the_law_of_the_patterns() -> None:
    P, l, alpha = draw(), 10, 0.7
    query = P.digit[:, -1]
    np.testing.assert_array_equal(query, np.where(P.label == 1, P.task[:, 0], P.task[:, 1]))
    assert abs(P.label.mean()) < 4 / len(P.label) ** 0.5
    a, b = (P.digit[:, :-1] == P.task[:, [side]] for side in (0, 1))
    assert (P.context_label[a] == 1).all()
    assert (P.context_label[b] == -1).all()
    coins = P.context_label[~a & ~b]
    assert abs(coins.mean()) < 4 / len(coins) ** 0.5
    np.testing.assert_array_equal(P.same, np.where(P.label[:, None] == 1, a, b))
    law = len(query) * binom.pmf(np.arange(l + 1), l, alpha / 2)
    counts = np.bincount(P.same.sum(axis=1), minlength=l + 1)
    few = np.r_[counts[:7], counts[7:].sum()], np.r_[law[:7], law[7:].sum()]
    assert chisquare(few[0], few[1] * few[0].sum() / few[1].sum()).pvalue > 1e-4


def test_pictures_are_uniform_and_never_the_query_s_own() -> None:
    few = split()[0].only([4, 9])
    keep = np.r_[np.flatnonzero(few.digit == 4)[:3], np.flatnonzero(few.digit == 9)[:2]]
    five = Digits(few.picture[keep], few.x[keep], few.digit[keep])
    P = digit_prompts(five, [(4, 9), (9, 4)], 6000, 5, 1.0, rng())
    assert (P.image[:, :-1] != P.image[:, -1:]).all()
    np.testing.assert_array_equal(P.digit, five.digit[P.image])
    queries = np.bincount(P.image[:, -1], minlength=5)
    assert chisquare(queries, 6000 * np.array([1, 1, 1, 1.5, 1.5]) / 6).pvalue > 1e-4
    for image in range(5):  # given the query, its digit's other pictures are alike, and so the rest
        seen = np.bincount(P.image[P.image[:, -1] == image, :-1].ravel(), minlength=5)
        for digit in (4, 9):
            others = (five.digit == digit) & (np.arange(5) != image)
            if others.sum() > 1:
                assert chisquare(seen[others]).pvalue > 1e-4


def test_contexts_show_only_digits_of_which_there_are_pictures() -> None:
    digits = [0, 3, 5, 8]
    P = draw(digits=split()[0].only(digits), tasks=[(5, 0), (8, 3)])
    assert set(np.unique(P.digit)) == set(digits)
    assert {tuple(task) for task in P.task.tolist()} == {(5, 0), (8, 3)}


def test_tokens_are_inputs_with_embedded_labels_and_the_query_holds_none() -> None:
    P = draw(n=5, l=4)
    assert P.tokens.shape == (5, 4, 72)
    assert P.query.shape == (5, 72)
    np.testing.assert_array_equal(P.tokens[..., :64], split()[0].x[P.image[:, :-1]])
    np.testing.assert_array_equal(P.query[:, :64], split()[0].x[P.image[:, -1]])
    assert not P.query[:, 64:].any()
    embedded = P.tokens[..., 64:]
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=2), 1)
    q = embedded[0, 0] * P.context_label[0, 0]
    np.testing.assert_array_equal(embedded, P.context_label[..., None] * q)
    model = OneLayerTransformer(64, 8, 6, torch_stream(0, "digits"))
    assert model(P.tokens, P.query).shape == (5,)


def test_the_same_generator_gives_the_same_prompts() -> None:
    np.testing.assert_array_equal(draw().image, draw().image)
    assert not np.array_equal(draw(rng=rng(1)).image, draw().image)


@pytest.mark.parametrize("learner", LEARNERS)
def test_classical_learners_take_digits_as_they_take_patterns(learner: Any) -> None:  # noqa: ANN401
    P = draw(n=60, l=20, alpha=0.9)
    wrong = (classical_predictions(P, learner) != P.label).mean()
    assert wrong < 0.25


def test_a_classifier_of_scikit_learn_is_fitted_with_its_own_settings() -> None:
    P = draw(n=40)
    same = classical_predictions(P, KNeighborsClassifier(3))
    np.testing.assert_array_equal(same, classical_predictions(P, "3-NN"))
    assert (classical_predictions(P, SVC(C=1e-3, gamma=10.0)) != P.label).mean() > 0.3
    assert (classical_predictions(P, SVC(C=10, gamma=0.1)) != P.label).mean() < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [(1, 1)]}, "tasks: got the task [1.0, 1.0]"),
        ({"tasks": [(1, 10)]}, "tasks: got the task [1.0, 10.0]"),
        ({"rng": 3}, "rng: got 3, expected a numpy.random.Generator"),
        ({"n": 0}, "n: got 0, expected an integer of at least 1"),
        ({"alpha": 0.0}, "alpha: got 0.0 with M1 = 10"),
        ({"digits": split()[0].only([1, 2, 3]), "tasks": [(1, 4)]}, "digits: got"),
        ({"digits": split()[0].only([1]), "tasks": [(1, 4)]}, "digits: got"),
    ],
)
def test_what_may_not_be_asked_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(**changes)


def test_a_lone_picture_cannot_be_both_query_and_context() -> None:
    part = split()[0]
    keep = np.r_[np.flatnonzero(part.digit == 4)[:1], np.flatnonzero(part.digit == 9)]
    lone = Digits(part.picture[keep], part.x[keep], part.digit[keep])
    with pytest.raises(ValueError, match=r"digits: got \[1, \d+\] pictures of \[4, 9\]"):
        digit_prompts(lone, [(4, 9)], 5, 3, 1.0, rng())


@pytest.mark.parametrize("distances", [0, 10])
def test_distances_go_from_1_to_the_number_of_digits_less_1(distances: int) -> None:
    with pytest.raises(ValueError, match=f"distances: got {distances}, expected"):
        digit_tasks(range(10), distances, rng())


@pytest.mark.parametrize("norm", [0.0, float("nan")])
def test_inputs_have_a_positive_length(norm: float) -> None:
    with pytest.raises(ValueError, match=r"norm: got"):
        split_digits(rng(), norm)
