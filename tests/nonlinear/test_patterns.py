"""Patterns, tasks and worlds of paper B: what is spanned, what is covered, what is refused."""

import re

import numpy as np
import pytest
from scipy.stats import chisquare

from iclbook.nonlinear import (
    Patterns,
    World,
    all_tasks,
    circle_tasks,
    coefficients_with_sum,
    draw_world,
    orthogonal_patterns,
    out_of_domain,
    sample_prompts,
)

M1, M2, DX, DY = 6, 8, 16, 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(beta: float = 1.5) -> Patterns:
    return orthogonal_patterns(M1, M2, DX, DY, beta, rng(9))


def test_patterns_are_orthogonal_of_the_norms_that_were_asked_for() -> None:
    patterns = make(beta=1.5)
    expected = np.diag([1.5**2] * (M1 + M2) + [1.0])
    np.testing.assert_allclose(patterns.basis @ patterns.basis.T, expected, atol=1e-12)
    assert patterns.beta == pytest.approx(1.5)
    np.testing.assert_allclose(patterns.norms**2, np.diag(expected))


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


def test_combinations_may_have_another_norm_if_they_share_it() -> None:
    old = make(beta=1.5)
    k = np.array([[0.3, -0.3, 0.5, 0, 0, 0], [0, 0, 0, 0.3, -0.3, 0.5]])
    new = out_of_domain(old, k, rng())
    assert new.beta == pytest.approx(1.5 * np.sqrt(0.43))
    np.testing.assert_allclose(new.nu @ new.nu.T, 1.5**2 * np.eye(M2), atol=1e-12)


def test_patterns_that_are_not_orthogonal_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 14 patterns, expected at most dX = 13"):
        orthogonal_patterns(M1, M2, 13, DY, 1.0, rng())
    with pytest.raises(ValueError, match=r"beta: got 0\.0, expected a positive"):
        orthogonal_patterns(M1, M2, DX, DY, 0.0, rng())
    with pytest.raises(ValueError, match="expected orthogonal ones"):
        Patterns(mu=np.eye(4)[:2], nu=np.full((1, 4), 0.5), q=[1.0])
    with pytest.raises(ValueError, match="patterns: got norms"):
        Patterns(mu=np.diag([1.0, 2.0, 0.0])[:2], nu=np.eye(3)[2:], q=[1.0])
    with pytest.raises(ValueError, match="expected none 0"):
        Patterns(mu=np.eye(4)[:2], nu=np.zeros((1, 4)), q=[1.0])
    with pytest.raises(ValueError, match="coefficients: got rows with products"):
        out_of_domain(make(), np.diag([1.0, 1.0, 1.1, 1.0, 1.0, 1.0])[:3], rng())


def pairs(tasks: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(task) for task in tasks.tolist()}


def test_circle_tasks_are_those_at_the_distances_and_the_rest() -> None:
    chosen, others = circle_tasks(5, (1, 3))
    assert pairs(chosen) == {(a, (a + d) % 5) for a in range(5) for d in (1, 3)}
    assert pairs(chosen) | pairs(others) == pairs(all_tasks(5))
    assert len(chosen) + len(others) == 20
    for distances in ((0,), (5,), (1, 1), (1.5,)):
        with pytest.raises(ValueError, match=r"distances: got .*expected different ones of 1\.\.4"):
            circle_tasks(5, distances)


@pytest.mark.parametrize("m1", [2, 3, 4, 5, 6, 9, 10, 12, 17])
def test_a_world_trains_as_few_tasks_as_the_paper_allows_and_holds_out_the_rest(m1: int) -> None:
    world = draw_world(rng(m1), M1=m1, M2=2, dX=m1 + 2, dY=3, beta=0.7)
    patterns = world.patterns
    sizes = (patterns.M1, patterns.M2, patterns.dX, patterns.dY)
    assert sizes == (m1, 2, m1 + 2, 3)
    assert patterns.beta == pytest.approx(0.7)
    assert world.covered
    per_pattern = len(world.trained) / m1
    assert per_pattern >= np.sqrt(m1 - 1) > per_pattern - 1  # |T_tr| >= |T| (M1 - 1)^(-1/2)
    assert pairs(world.trained) | pairs(world.held_out) == pairs(all_tasks(m1))
    assert not pairs(world.trained) & pairs(world.held_out)
    assert len(world.held_out) > 0 or m1 < 4


def test_patterns_and_tasks_of_a_world_are_drawn_apart() -> None:
    worlds = [draw_world(rng(seed)) for seed in range(40)]
    distances = [np.unique((w.trained[:, 1] - w.trained[:, 0]) % 6) for w in worlds]
    assert {len(one) for one in distances} == {3}
    assert chisquare(np.bincount(np.concatenate(distances), minlength=6)[1:]).pvalue > 1e-4
    wider = draw_world(rng(3), dX=60, beta=2.0)
    np.testing.assert_array_equal(wider.trained, worlds[3].trained)
    again = draw_world(rng(3))
    np.testing.assert_array_equal(again.patterns.basis, worlds[3].patterns.basis)
    assert not np.allclose(worlds[2].patterns.basis, worlds[3].patterns.basis)
    chosen = draw_world(rng(3), distances=(1, 2, 5))
    np.testing.assert_array_equal(chosen.trained, circle_tasks(6, (1, 2, 5))[0])
    np.testing.assert_array_equal(chosen.patterns.basis, worlds[3].patterns.basis)


@pytest.mark.parametrize(
    ("trained", "covered"),
    [
        ([(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)], True),  # all tasks of three patterns
        ([(0, 1), (1, 2), (2, 3), (3, 0)], False),  # a third of all, the paper asks for .577
        (circle_tasks(4, (1, 2))[0], True),
        (circle_tasks(4, (1, 2))[0][1:], False),  # one task less: not alike for all patterns
        (circle_tasks(4, (1, 2, 3))[0][:-1], False),  # 11 of 12, but not alike
    ],
)
def test_a_world_says_whether_its_tasks_meet_the_condition(
    trained: list[tuple[int, int]], covered: bool
) -> None:
    m1 = 3 if len(trained) == 6 else 4
    patterns = orthogonal_patterns(m1, 1, 6, 2, 1.0, rng())
    assert World(patterns, trained, ()).covered == covered


def test_a_world_counts_in_how_many_orders_a_pair_is_trained() -> None:
    world = World(make(), [(0, 1), (1, 0), (2, 3)], [(3, 2)])
    expected = np.zeros((M1, M1), dtype=int)
    expected[0, 1] = expected[1, 0] = 2
    expected[2, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(world.met, expected)


@pytest.mark.parametrize(
    ("trained", "held_out", "message"),
    [
        ([(0, 0)], (), "trained: got the task [0.0, 0.0], expected two different integers"),
        ([(0, 1)], [(0, 6)], "held_out: got the task [0.0, 6.0], expected two different"),
        ((), [(0, 1)], "trained: got shape (0,), expected (any, 2)"),
        (3, (), "trained: got shape (), expected (any, 2)"),
        ([(0, 1)], 3, "held_out: got shape (), expected (any, 2)"),
        ([(0, 1), (1,)], (), "trained: got rows of unequal length"),
        ([(0, 1)], [(0, 1)], "held_out: got a task twice"),
        ([(0, 1), (0, 1)], (), "held_out: got a task twice"),
    ],
)
def test_a_world_of_other_tasks_is_refused(trained: object, held_out: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        World(make(), trained, held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"M1": 1}, "M1: got 1, expected an integer of at least 2"),
        ({"beta": -1.0}, "beta: got -1.0"),
        ({"dX": 29}, "M1 + M2: got 30 patterns, expected at most dX = 29"),
        ({"distances": (6,)}, "distances: got (6,), expected different ones of 1..5"),
    ],
)
def test_a_world_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_world(rng(), **changes)
    with pytest.raises(ValueError, match=r"rng: got 3, expected a numpy\.random"):
        draw_world(3)


def test_a_pattern_relabelling_of_a_world_is_no_other_world() -> None:
    """The places on the circle need no draw: they are a name of the patterns."""
    world = draw_world(rng(1))
    order = rng(2).permutation(M1)
    place = np.argsort(order)
    patterns = Patterns(world.patterns.mu[order], world.patterns.nu, world.patterns.q)
    renamed = World(patterns, place[world.trained], place[world.held_out])
    assert renamed.covered == world.covered
    np.testing.assert_array_equal(renamed.met[np.ix_(place, place)], world.met)
    first = sample_prompts(world.patterns, world.held_out, 5, 4, 1.0, rng())
    second = sample_prompts(renamed.patterns, renamed.held_out, 5, 4, 1.0, rng())
    np.testing.assert_allclose(first.tokens, second.tokens)
