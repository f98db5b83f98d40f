"""Prompts of paper B: their law by chi-square and exactly, and what may not be asked for."""

import re
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chisquare, kstest

from iclbook.nonlinear import (
    Patterns,
    Prompts,
    all_tasks,
    circle_tasks,
    least_error,
    orthogonal_patterns,
    sample_prompts,
)

M1, M2, DX, DY = 6, 8, 16, 3
ARRAYS = ("task", "pattern", "irrelevant", "kappa", "context_label", "label")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@cache
def make(m1: int = M1) -> Patterns:
    return orthogonal_patterns(m1, M2, DX, DY, 1.5, rng(9))


def draw(n: int = 4000, l: int = 10, alpha: float = 0.7, **changes: Any) -> Prompts:  # noqa: ANN401
    options: dict[str, Any] = {
        "patterns": make(), "tasks": all_tasks(M1), "rng": rng(), **changes
    }  # fmt: skip
    return sample_prompts(n=n, l=l, alpha=alpha, **options)


def same_bits(first: Prompts, second: Prompts) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAYS)


@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.7, 1.0])
def test_contexts_show_a_and_b_with_probability_half_alpha_and_others_alike(alpha: float) -> None:
    indices = draw(alpha=alpha)
    task = indices.task
    shown = indices.pattern[:, :-1, None] == task[:, None, :]
    third = np.setdiff1d(np.arange(M1), task[0])[:, None]  # each other pattern of one task
    one_task = indices.pattern[(indices.task == indices.task[0]).all(axis=1), :-1]
    a, b = shown.sum(axis=(0, 1))
    total = indices.kappa[:, :-1].size
    if alpha == 1:
        assert a + b == total
    else:
        observed = [a, b, total - a - b]
        law = total * np.array([alpha / 2, alpha / 2, 1 - alpha])
        assert chisquare(observed, law).pvalue > 1e-4
        assert chisquare((one_task.ravel() == third).sum(axis=1)).pvalue > 1e-4
    assert chisquare([a, b]).pvalue > 1e-4


def test_labels_are_plus_on_a_minus_on_b_and_fair_coins_elsewhere() -> None:
    indices = draw()
    task = indices.task
    pattern, label = indices.pattern[:, :-1], indices.context_label
    on_a, on_b = pattern == task[:, :1], pattern == task[:, 1:]
    assert (label[on_a] == 1).all()
    assert (label[on_b] == -1).all()
    coins = label[~on_a & ~on_b]
    assert chisquare([(coins == 1).sum(), (coins == -1).sum()]).pvalue > 1e-4
    query = indices.pattern[:, -1]
    np.testing.assert_array_equal(query, np.where(indices.label == 1, task[:, 0], task[:, 1]))
    assert chisquare([(indices.label == 1).sum(), (indices.label == -1).sum()]).pvalue > 1e-4


def test_coins_are_independent_of_the_pattern_they_fall_on() -> None:
    indices = draw(n=8000, alpha=0.1)
    task = indices.task
    pattern, label = indices.pattern[:, :-1], indices.context_label
    elsewhere = (pattern != task[:, :1]) & (pattern != task[:, 1:])
    for j in range(M1):
        heads = label[elsewhere & (pattern == j)] == 1
        assert chisquare([heads.sum(), (~heads).sum()]).pvalue > 1e-4


def test_tasks_irrelevant_patterns_and_their_weights_are_uniform() -> None:
    tasks, _ = circle_tasks(M1, (1, 2, 4))
    indices = draw(tasks=tasks, kappa=0.4)
    assert chisquare(np.unique(indices.task @ [M1, 1], return_counts=True)[1]).pvalue > 1e-4
    assert chisquare(np.bincount(indices.irrelevant.ravel(), minlength=M2)).pvalue > 1e-4
    weights = indices.kappa.ravel().astype(np.float64)
    assert kstest(weights, "uniform", args=(-0.4, 0.8)).pvalue > 1e-4


def test_tokens_are_the_sums_that_the_indices_say() -> None:
    patterns = make()
    prompts = sample_prompts(patterns, all_tasks(M1), 5, 4, 0.7, rng())
    i = prompts
    for n in range(5):
        for t in range(5):
            x = patterns.mu[i.pattern[n, t]] + i.kappa[n, t] * patterns.nu[i.irrelevant[n, t]]
            token = prompts.query[n] if t == 4 else prompts.tokens[n, t]
            y = 0 * patterns.q if t == 4 else i.context_label[n, t] * patterns.q
            np.testing.assert_allclose(token, np.concatenate([x, y]), atol=1e-14)
            if t < 4:
                assert prompts.same[n, t] == (i.pattern[n, t] == i.pattern[n, 4])
    np.testing.assert_array_equal(prompts.label, i.label)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    assert same_bits(draw(rng=rng(3)), draw(rng=rng(3)))
    assert not same_bits(draw(rng=rng(3)), draw(rng=rng(4)))


def test_streams_are_separate_alpha_changes_no_task_and_no_irrelevant_part() -> None:
    first, second = draw(alpha=0.9), draw(alpha=0.4)
    for name in ("task", "label", "irrelevant", "kappa"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.pattern != second.pattern).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha: got 0.0 with M1 = 6, expected in (0, 1]"),
        ({"alpha": 1.1}, "alpha: got 1.1"),
        ({"alpha": np.nan}, "alpha"),
        ({"l": 0}, "l: got 0"),
        ({"n": 0}, "n: got 0"),
        ({"kappa": -0.1}, "kappa: got -0.1"),
        ({"tasks": [(2, 2)]}, "tasks: got the task [2.0, 2.0], expected two different integers"),
        (
            {"tasks": [(0, 6)]},
            "tasks: got the task [0.0, 6.0], expected two different integers of 0..5",
        ),
        ({"tasks": [(0, -1)]}, "tasks: got the task [0.0, -1.0]"),
        ({"tasks": [(0.5, 1.0)]}, "tasks: got the task [0.5, 1.0]"),
        ({"tasks": []}, "tasks: got shape (0,)"),
        (
            {"patterns": make(2), "tasks": [(0, 1)]},
            "alpha: got 0.7 with M1 = 2, expected in (0, 1]",
        ),
        ({"tasks": 3}, "tasks: got shape (), expected (any, 2)"),
        ({"rng": 7}, "rng: got 7, expected a numpy.random.Generator"),
        (
            {"contexts": "guarantied"},
            "contexts: got 'guarantied', expected 'independent', 'guaranteed'",
        ),
        ({"contexts": np.full(4000, 11)}, "'guaranteed' or 4000 of 0..10"),
        ({"contexts": np.full(4000, -1)}, "'guaranteed' or 4000 of 0..10"),
        ({"contexts": np.full(4000, 2.0)}, "'guaranteed' or 4000 of 0..10"),
        ({"contexts": [1, 2]}, "contexts: got [1, 2]"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(**changes)


def test_two_patterns_with_all_contexts_relevant_are_a_task() -> None:
    for contexts in ("independent", "guaranteed"):
        P = draw(200, 5, 1.0, patterns=make(2), tasks=[(1, 0)], contexts=contexts)
        np.testing.assert_array_equal(P.context_label, np.where(P.pattern[:, :-1] == 1, 1, -1))
        np.testing.assert_array_equal(P.label, np.where(P.pattern[:, -1] == 1, 1, -1))


def law_of_prompts(l: int, alpha: float) -> dict[tuple[int, ...], float]:
    """Independent law of slots: 0 the query's pattern, 1 its opponent, 2 and 3 the others."""
    of_slot = [alpha / 2, alpha / 2, (1 - alpha) / 2, (1 - alpha) / 2]
    return {s: np.prod([of_slot[i] for i in s]) for s in product(range(4), repeat=l)}


def slots_of(P: Prompts) -> np.ndarray:
    """Slot of each context, for 4 patterns: the others in ascending order."""
    query = P.pattern[:, -1:]
    opponent = P.task.sum(axis=1, keepdims=True) - query
    others = [[c for c in range(4) if c not in task] for task in P.task.tolist()]
    order = np.concatenate([query, opponent, others], axis=1)
    return np.argmax(order[:, None, :] == P.pattern[:, :-1, None], axis=2)


@pytest.mark.parametrize(("l", "alpha"), [(3, 0.7), (4, 0.5), (4, 1.0)])
@pytest.mark.parametrize("contexts", ["independent", "guaranteed"])
def test_whole_prompts_follow_their_law(l: int, alpha: float, contexts: str) -> None:
    """The guaranteed law is the independent one, conditioned: enumerated over all prompts."""
    law = law_of_prompts(l, alpha)
    if contexts == "guaranteed":  # at least a fraction alpha / 2, rounded up
        law = {s: p for s, p in law.items() if s.count(0) >= l * alpha / 2}
    total = sum(law.values())
    law = {s: p / total for s, p in law.items() if p > 0}
    P = draw(40_000, l, alpha, patterns=make(4), tasks=all_tasks(4), contexts=contexts)
    found = dict.fromkeys(law, 0)
    for slots in slots_of(P).tolist():
        found[tuple(slots)] += 1  # a prompt outside the law is a KeyError
    assert chisquare(list(found.values()), 40_000 * np.array(list(law.values()))).pvalue > 1e-4
    assert chisquare(np.unique(P.pattern[:, -1], return_counts=True)[1]).pvalue > 1e-4
    assert chisquare(np.unique(P.label, return_counts=True)[1]).pvalue > 1e-4


@pytest.mark.parametrize(("l", "alpha", "least"), [(20, 0.8, 8), (20, 0.6, 6), (7, 0.5, 2)])
def test_guaranteed_numbers_are_binomial_given_that_they_are_enough(
    l: int, alpha: float, least: int
) -> None:
    P = draw(20_000, l, alpha, contexts="guaranteed")
    k = np.arange(least, l + 1)
    law = binom.pmf(k, l, alpha / 2) / binom.sf(least - 1, l, alpha / 2)
    numbers = P.same.sum(axis=1)
    assert numbers.min() == least
    common = law * 20_000 > 5
    found = np.array([(numbers == one).sum() for one in k])
    observed = [*found[common], found[~common].sum()]
    assert chisquare(observed, [*(20_000 * law[common]), 20_000 * law[~common].sum()]).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_number_of_contexts_with_the_query_s_pattern_can_be_given(alpha: float) -> None:
    k = np.arange(4000) % 6
    P = draw(4000, 5, alpha, contexts=k)
    np.testing.assert_array_equal(P.same.sum(axis=1), k)
    assert (P.context_label[P.same] == np.repeat(P.label, k)).all()
    assert chisquare(P.same[k == 2].sum(axis=0)).pvalue > 1e-4  # they stand anywhere
    opponent = P.task.sum(axis=1, keepdims=True) - P.pattern[:, -1:]
    against = (P.pattern[:, :-1] == opponent)[~P.same]
    share = alpha / 2 / (1 - alpha / 2)
    if alpha == 1:
        assert against.all()
    else:
        observed = [against.sum(), (~against).sum()]
        expected = len(against) * np.array([share, 1 - share])
        assert chisquare(observed, expected).pvalue > 1e-4


def test_the_law_of_the_contexts_changes_no_task_and_no_irrelevant_part() -> None:
    first = draw()
    for contexts in ("guaranteed", np.full(4000, 3)):
        second = draw(contexts=contexts)
        for name in ("task", "label", "irrelevant", "kappa"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_more_patterns_than_can_be_counted_are_refused() -> None:
    class Many(Patterns):
        M2 = 40_000

    with pytest.raises(ValueError, match=r"patterns: got M1 = 6, M2 = 40000 with 30 tasks"):
        draw(patterns=Many(make().mu, make().nu, make().q))


def test_pooling_is_the_weighted_sum_of_the_contexts() -> None:
    P = draw(7, 4)
    weights = rng(2).random((7, 4))
    expected = [sum(w * t for w, t in zip(weights[n], P.tokens[n], strict=True)) for n in range(7)]
    np.testing.assert_allclose(P.pool(weights), expected)
    np.testing.assert_array_equal(P.x[:, :-1], P.tokens[..., :DX])
    np.testing.assert_array_equal(P.x[:, -1], P.query[:, :DX])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(9, np.int8)}, "label, absolute: got shape (9,), values [0]"),
        ({"label": np.ones(8, np.int8)}, "label, absolute: got shape (8,)"),
        (
            {"context_label": np.full((9, 4), 2, np.int8)},
            "context_label, absolute: got shape (9, 4)",
        ),
        ({"context_label": np.full((9, 4), np.nan)}, "context_label, absolute: got shape (9, 4)"),
        ({"kappa": np.full((9, 5), np.nan)}, "kappa: got shape (9, 5), values [nan]"),
        ({"kappa": np.full((9, 5), np.inf)}, "kappa: got shape (9, 5), values [inf]"),
        ({"pattern": np.full((9, 5), M1)}, "pattern: got shape (9, 5), values [6], expected"),
        ({"pattern": np.zeros(9, int)}, "pattern: got shape (9,)"),
        ({"irrelevant": np.full((9, 5), M2)}, "irrelevant: got shape (9, 5), values [8], expected"),
        ({"irrelevant": np.full((9, 5), -1)}, "irrelevant: got shape (9, 5), values [-1]"),
        ({"task": np.zeros(9, int)}, "task: got shape (9,)"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(draw(9, 4), **changes)
    with pytest.raises(ValueError, match="pattern: got shape"):
        replace(draw(9, 4), pattern=np.zeros((0, 5), int))


def bayes_error(l: int, alpha: float, m1: int) -> float:
    """Exactly, for the query's pattern 0: over all prompts, the mass of the less likely label."""
    cells = [(c, y) for c in range(m1) for y in (1, -1)]
    lost = 0.0
    for prompt in product(cells, repeat=l):
        mass = {1: 0.0, -1: 0.0}
        for z, opponent in product((1, -1), range(1, m1)):
            p = 1 / 2 / (m1 - 1)
            for c, y in prompt:
                if c == 0:
                    p *= alpha / 2 * (y == z)
                elif c == opponent:
                    p *= alpha / 2 * (y == -z)
                else:
                    p *= (1 - alpha) / (m1 - 2) / 2
            mass[z] += p
        lost += min(mass.values())
    return lost


@pytest.mark.parametrize(("l", "alpha", "m1"), [(1, 0.8, 6), (2, 0.5, 4), (3, 0.6, 4), (4, 0.7, 3)])
def test_the_least_error_is_that_of_bayes_over_all_prompts(l: int, alpha: float, m1: int) -> None:
    found = np.array([least_error(m1, l, alpha, 4000, rng(seed)) for seed in range(20)])
    stderr = found.std(ddof=1) / np.sqrt(20)
    assert abs(found.mean() - bayes_error(l, alpha, m1)) < 4 * stderr + 1e-12


def test_the_least_error_is_0_without_other_patterns_and_refuses_the_rest() -> None:
    assert least_error(6, 3, 1.0, 10, rng()) == 0.0
    for name, arguments in {
        "M1: got 1": (1, 3, 0.5, 10),
        "l: got 0": (6, 0, 0.5, 10),
        "alpha: got 1.5": (6, 3, 1.5, 10),
        "n: got 0": (6, 3, 0.5, 0),
    }.items():
        with pytest.raises(ValueError, match=name):
            least_error(*arguments, rng())
