"""Prompts of paper B: their law by chi-square, what may not be asked for, and what is spanned."""

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from iclbook.nonlinear import (
    OneLayerTransformer,
    Patterns,
    PromptIndices,
    all_tasks,
    build_prompts,
    check_coverage,
    coefficients_with_sum,
    evaluate,
    orthogonal_patterns,
    out_of_domain,
    sample_indices,
    sample_prompts,
    training_tasks,
)

M1, M2, DX, DY = 6, 8, 16, 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(beta: float = 1.5) -> Patterns:
    return orthogonal_patterns(M1, M2, DX, DY, beta, rng(9))


def draw(n: int = 4000, l: int = 10, alpha: float = 0.7, **changes: Any) -> PromptIndices:  # noqa: ANN401
    options: dict[str, Any] = {"M1": M1, "M2": M2, "tasks": all_tasks(M1), "rng": rng(), **changes}
    return sample_indices(n=n, l=l, alpha=alpha, **options)


def same_bits(first: PromptIndices, second: PromptIndices) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(_values, (first, second)), strict=True))


def _values(indices: PromptIndices) -> list[np.ndarray]:
    return list(vars(indices).values())


def test_patterns_are_orthogonal_of_the_norms_that_were_asked_for() -> None:
    patterns = make(beta=1.5)
    expected = np.diag([1.5**2] * (M1 + M2) + [1.0])
    np.testing.assert_allclose(patterns.basis @ patterns.basis.T, expected, atol=1e-12)
    assert patterns.beta == pytest.approx(1.5)
    np.testing.assert_allclose(patterns.norms**2, np.diag(expected))


@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.7, 1.0])
def test_contexts_show_a_and_b_with_probability_half_alpha_and_others_alike(alpha: float) -> None:
    indices = draw(alpha=alpha)
    task = all_tasks(M1)[indices.task]
    shown = indices.pattern[:, :-1, None] == task[:, None, :]
    third = np.setdiff1d(np.arange(M1), task[0])[:, None]  # each other pattern of one task
    one_task = indices.pattern[(indices.task == indices.task[0]), :-1]
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
    task = all_tasks(M1)[indices.task]
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
    task = all_tasks(M1)[indices.task]
    pattern, label = indices.pattern[:, :-1], indices.context_label
    elsewhere = (pattern != task[:, :1]) & (pattern != task[:, 1:])
    for j in range(M1):
        heads = label[elsewhere & (pattern == j)] == 1
        assert chisquare([heads.sum(), (~heads).sum()]).pvalue > 1e-4


def test_tasks_irrelevant_patterns_and_their_weights_are_uniform() -> None:
    tasks, _ = training_tasks(M1, rng())
    indices = draw(tasks=tasks, kappa=0.4)
    assert chisquare(np.bincount(indices.task, minlength=len(tasks))).pvalue > 1e-4
    assert chisquare(np.bincount(indices.irrelevant.ravel(), minlength=M2)).pvalue > 1e-4
    weights = indices.kappa.ravel().astype(np.float64)
    assert kstest(weights, "uniform", args=(-0.4, 0.8)).pvalue > 1e-4


def test_tokens_are_the_sums_that_the_indices_say() -> None:
    patterns = make()
    prompts = sample_prompts(patterns, all_tasks(M1), 5, 4, 0.7, rng())
    i = prompts.indices
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


@pytest.mark.parametrize("m1", [4, 5, 6, 9, 12])
@pytest.mark.parametrize("fraction", [None, 0.6])
def test_training_tasks_cover_all_patterns_and_hold_the_others_out(
    m1: int, fraction: float | None
) -> None:
    trained, held_out = training_tasks(m1, rng(m1), fraction)
    check_coverage(trained, m1)
    assert len(trained) >= (fraction or 0) * m1 * (m1 - 1)
    assert len(held_out)
    together = {tuple(task) for task in np.concatenate([trained, held_out]).tolist()}
    assert together == {(a, b) for a in range(m1) for b in range(m1) if a != b}
    assert len(together) == len(trained) + len(held_out)


def test_training_tasks_are_drawn_and_all_of_them_can_be_asked_for() -> None:
    drawn = [training_tasks(6, rng(seed))[0].tolist() for seed in range(5)]
    assert any(drawn[0] != other for other in drawn)
    trained, held_out = training_tasks(6, rng(), fraction=1.0)
    assert len(trained) == 30
    assert held_out.shape == (0, 2)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([(0, 1), (1, 2), (2, 0), (0, 1)], "more than once"),
        ([(0, 1), (1, 2), (2, 0), (0, 3)], "equally often"),
        ([(0, 1), (1, 0)], "equally often"),
        ([(0, 1), (1, 2), (2, 3), (3, 0)], "0.3333 of all tasks, expected at least 0.5774"),
    ],
)
def test_coverage_is_refused_where_the_paper_asks_for_more(
    tasks: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_coverage(tasks, 4)


@pytest.mark.parametrize(
    ("new", "old", "S1"),
    [(2, 6, 1.7), (3, 6, 1.3), (3, 6, 0.0), (5, 6, -1.0), (6, 6, 1.0), (4, 16, 2)],
)
def test_coefficients_are_orthonormal_rows_of_the_sum_that_was_asked_for(
    new: int, old: int, S1: float
) -> None:
    k = coefficients_with_sum(new, old, S1, rng())
    np.testing.assert_allclose(k @ k.T, np.eye(new), atol=1e-12)
    np.testing.assert_allclose(k.sum(axis=1), S1, atol=1e-12)
    assert not np.allclose(k, coefficients_with_sum(new, old, S1, rng(1)))


@pytest.mark.parametrize(("new", "old", "S1"), [(2, 6, 1.8), (4, 6, 1.3), (6, 6, 0.9), (7, 6, 0.1)])
def test_sums_that_no_orthonormal_rows_have_are_refused(new: int, old: int, S1: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"S1: got {S1} for {new} orthonormal rows")):
        coefficients_with_sum(new, old, S1, rng())


def test_new_patterns_are_the_combinations_and_stay_in_the_old_spans() -> None:
    old = make()
    k = coefficients_with_sum(3, M1, 1.2, rng())
    new = out_of_domain(old, k, rng())
    np.testing.assert_allclose(new.mu, k @ old.mu, atol=1e-12)
    np.testing.assert_allclose(new.nu @ old.mu.T, 0, atol=1e-12)
    rotation = new.nu @ old.nu.T / old.beta**2
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(M2), atol=1e-12)
    assert not np.allclose(rotation, np.eye(M2), atol=0.1)
    np.testing.assert_array_equal(new.q, old.q)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha: got 0.0, expected a fraction in (0, 1]"),
        ({"alpha": 1.1}, "alpha: got 1.1"),
        ({"alpha": np.nan}, "alpha"),
        ({"l": 0}, "l: got 0"),
        ({"n": 0}, "n: got 0"),
        ({"kappa": -0.1}, "kappa: got -0.1"),
        ({"tasks": [(2, 2)]}, "tasks: got the task (2, 2), expected two different patterns"),
        ({"tasks": [(0, 6)]}, "tasks: got indices 0..6, expected 0..5"),
        ({"tasks": [(0, -1)]}, "tasks: got indices -1..0, expected 0..5"),
        ({"tasks": [(0.0, 1.0)]}, "tasks: got dtype float64, expected integers"),
        ({"tasks": []}, "tasks: got shape (0,)"),
        ({"M1": 2, "tasks": [(0, 1)]}, "there is no third pattern"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(**changes)


def test_patterns_that_are_not_orthogonal_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 14 patterns, expected at most dX = 13"):
        orthogonal_patterns(M1, M2, 13, DY, 1.0, rng())
    with pytest.raises(ValueError, match=r"beta: got 0\.0, expected a positive"):
        orthogonal_patterns(M1, M2, DX, DY, 0.0, rng())
    with pytest.raises(ValueError, match="expected orthogonal ones"):
        Patterns(mu=np.eye(4)[:2], nu=np.full((1, 4), 0.5), q=[1.0])
    with pytest.raises(ValueError, match="mu: got rows of norms"):
        Patterns(mu=np.diag([1.0, 2.0, 0.0])[:2], nu=np.eye(3)[2:], q=[1.0])
    with pytest.raises(ValueError, match="one of norm 0"):
        Patterns(mu=np.eye(4)[:2], nu=np.zeros((1, 4)), q=[1.0])
    with pytest.raises(ValueError, match="coefficients: got rows whose products differ"):
        out_of_domain(make(), np.eye(M1)[:3] * 1.1, rng())
    with pytest.raises(
        ValueError, match=r"fraction: got 0.2, expected 0.4472 \(the paper's\) to 1"
    ):
        training_tasks(M1, rng(), fraction=0.2)


def test_indices_beyond_the_patterns_are_refused() -> None:
    few = orthogonal_patterns(M1, M2 - 4, DX, DY, 1.0, rng())
    model = OneLayerTransformer(DX, DY, 2, torch.Generator().manual_seed(0))
    for use in (build_prompts, partial(evaluate, model)):
        with pytest.raises(ValueError, match="indices: got patterns up to 5 and 7, expected below"):
            use(few, draw(n=100))
