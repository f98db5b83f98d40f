"""Pruning of neurons: which rows go, and what is left."""

import re

import numpy as np
import pytest
import torch
from nonlinear_models import DX, DY, NEURONS, make, prompts, rng

from iclbook.nonlinear import evaluate, neuron_norms, prune, shrink


@pytest.mark.parametrize(("rate", "removed"), [(0.0, 0), (0.24, 2), (0.29, 3), (0.5, 5), (1.0, 10)])
def test_pruning_removes_the_rows_of_least_or_largest_norm(rate: float, removed: int) -> None:
    model = make()
    before = neuron_norms(model)
    ascending = np.argsort(before)
    for by, gone in (("magnitude", ascending[:removed]), ("largest", ascending[::-1][:removed])):
        pruned = prune(model, rate, by)
        assert set(np.flatnonzero(neuron_norms(pruned) == 0)) == set(gone)
        kept = np.setdiff1d(np.arange(NEURONS), gone)
        torch.testing.assert_close(pruned.W_O[kept], model.W_O[kept])
        torch.testing.assert_close(pruned.W_V, model.W_V)
    np.testing.assert_array_equal(neuron_norms(model), before)


def test_random_pruning_draws_its_rows_from_the_generator() -> None:
    model = make()
    gone = [
        tuple(np.flatnonzero(neuron_norms(prune(model, 0.4, "random", rng(seed))) == 0))
        for seed in (0, 0, 1, 2)
    ]
    assert all(len(rows) == 4 for rows in gone)
    assert gone[0] == gone[1]
    assert len(set(gone)) > 1


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_shrunk_model_is_smaller_and_says_the_same(rate: float) -> None:
    pruned, P = prune(make(), rate), prompts()
    small = shrink(pruned)
    assert small.W_O.shape == (NEURONS - round(rate * NEURONS), DX + DY)
    assert small.m == len(small.a) == len(small.W_O)
    torch.testing.assert_close(small(P.tokens, P.query), pruned(P.tokens, P.query))
    np.testing.assert_allclose(
        evaluate(small, P).output, small(P.tokens, P.query).detach(), atol=1e-12
    )


def test_pruning_refuses_what_it_cannot_do() -> None:
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"rate: got {re.escape(str(rate))}|rate"):
            prune(make(), rate)
    with pytest.raises(ValueError, match="by: got 'size'"):
        prune(make(), 0.1, "size")
    with pytest.raises(ValueError, match="rng: got None"):
        prune(make(), 0.1, "random")


def test_a_rate_may_come_as_an_array_or_a_tensor() -> None:
    expected = prune(make(), 0.5).W_O
    for rate in (np.array(0.5), torch.tensor(0.5, dtype=torch.float64)):
        torch.testing.assert_close(prune(make(), rate).W_O, expected)
