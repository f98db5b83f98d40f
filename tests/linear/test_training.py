"""Training: it reaches the exact minima, repeats bit for bit, and says when it diverges."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from iclbook.linear import (
    LinearSelfAttention,
    LinearTransformerBlock,
    RegressionTask,
    Trajectory,
    exact_risk,
    gd_beta_minimum,
    gd_beta_risk,
    lsa_minimum,
    lsa_risk,
    ltb_minimum,
    ltb_risk,
    train,
)

TASK = RegressionTask.isotropic(d=2, M=8, psi=0.5, signal=1.0, sigma=0.5)
KINDS = [LinearSelfAttention, LinearTransformerBlock]


def make(kind: type[LinearSelfAttention], d: int = 2, seed: int = 0) -> LinearSelfAttention:
    return kind(d, torch.Generator().manual_seed(seed))


def run(layer: LinearSelfAttention, seed: int = 0, **changes: Any) -> Trajectory:  # noqa: ANN401
    options: dict[str, Any] = {"steps": 20, "batch": 16, "lr": 0.02, **changes}
    return train(layer, TASK, rng=np.random.default_rng(seed), **options)


def test_exact_risk_is_that_of_the_layers_reduced_form() -> None:
    attention, block = (make(kind) for kind in KINDS)
    assert exact_risk(attention, TASK) == lsa_risk(TASK, *attention.reduced())
    assert exact_risk(block, TASK) == ltb_risk(TASK, *block.reduced())
    best = gd_beta_minimum(TASK)
    step = LinearTransformerBlock.from_gd_beta(best.beta, best.Gamma)
    assert exact_risk(step, TASK) == pytest.approx(best.risk, rel=1e-12)
    other = LinearTransformerBlock.from_gd_beta([3.0, 1.0], np.eye(2))
    expected = gd_beta_risk(TASK, [3.0, 1.0], np.eye(2))
    assert exact_risk(other, TASK) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_training_settles_within_one_per_cent_of_the_exact_minimum(
    kind: type[LinearSelfAttention],
) -> None:
    least = {LinearSelfAttention: lsa_minimum, LinearTransformerBlock: ltb_minimum}[kind](TASK)
    trajectory = run(make(kind), steps=500, batch=256, lr=0.03)
    assert trajectory.risk[0] > 1.2 * least.risk
    assert trajectory.risk[-1] < 1.01 * least.risk
    assert (trajectory.risk > (1 - 1e-12) * least.risk).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seeds_train_the_same_weights_bit_for_bit(
    kind: type[LinearSelfAttention],
) -> None:
    layers = make(kind), make(kind)
    first, second = (run(layer) for layer in layers)
    np.testing.assert_array_equal(first.risk, second.risk)
    np.testing.assert_array_equal(first.steps, second.steps)
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(a, b)
    other_data, other_start = run(make(kind), seed=1), run(make(kind, seed=1))
    assert other_data.risk[0] == first.risk[0]
    assert other_data.risk[-1] != first.risk[-1]
    assert other_start.risk[0] != first.risk[0]


def test_recording_does_not_change_the_run() -> None:
    often, seldom = make(LinearTransformerBlock), make(LinearTransformerBlock)
    all_steps, ends = run(often), run(seldom, records=2)
    np.testing.assert_array_equal(all_steps.steps, np.arange(21))
    np.testing.assert_array_equal(ends.steps, [0, 20])
    np.testing.assert_array_equal(ends.risk, all_steps.risk[[0, -1]])


def test_the_trajectory_begins_before_the_first_step_and_ends_after_the_last() -> None:
    layer = make(LinearSelfAttention)
    before = exact_risk(layer, TASK)
    trajectory = run(layer, steps=50, records=6)
    np.testing.assert_array_equal(trajectory.steps, [0, 10, 20, 30, 40, 50])
    assert trajectory.risk[0] == before
    assert trajectory.risk[-1] == exact_risk(layer, TASK)


def test_the_last_step_is_nearly_none() -> None:
    """Step k of n has size lr (1 + cos(pi k / n)) / 2, and Adam moves no weight by much more."""
    layer = make(LinearSelfAttention)
    run(layer, steps=1, lr=0.1)
    start = make(LinearSelfAttention)
    # Adam's first step is lr times the sign of the gradient.
    for weight, old in zip(layer.parameters(), start.parameters(), strict=True):
        moved = (weight - old).abs().detach().numpy()
        np.testing.assert_allclose(moved[moved > 0], 0.1, rtol=1e-3)
    risks = run(make(LinearSelfAttention), steps=200, lr=0.1, records=201).risk
    assert np.abs(np.diff(risks[-5:])).max() < 1e-3 * np.abs(np.diff(risks[:50])).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lr", [1e60, 1e100, 1e300])
def test_divergence_is_an_error_that_names_the_step(
    kind: type[LinearSelfAttention], lr: float
) -> None:
    with pytest.raises(FloatingPointError, match=r"^training diverged: the risk is \S+ at step 1$"):
        run(make(kind), lr=lr)


def test_divergence_between_records_is_seen_too() -> None:
    with pytest.raises(FloatingPointError, match=r"^training diverged: the loss is \S+ at step 1$"):
        run(make(LinearSelfAttention), lr=1e80, records=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_another_dimension_is_refused(kind: type[LinearSelfAttention]) -> None:
    with pytest.raises(ValueError, match=r"^layer: got one for d = 3, expected d = 2"):
        run(make(kind, d=3))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in ("steps", "batch") for bad in (0, -1, 2.5, True, "3", None)),
        *(("records", bad) for bad in (1, 0, 2.5, True)),
        *(("lr", bad) for bad in (0.0, -0.1, np.nan, np.inf, "0.1", 1j, True, np.float32(0.1))),
    ],
)
def test_bad_options_are_refused(name: str, bad: object) -> None:
    layer = make(LinearSelfAttention)
    before = exact_risk(layer, TASK)
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected"):
        run(layer, **{name: bad})
    assert exact_risk(layer, TASK) == before


def test_a_task_without_signal_or_noise_is_learned_to_nothing() -> None:
    """Labels that are all 0: the risk falls towards 0 and nothing divides by it."""
    task = replace(TASK, Psi=np.zeros((2, 2)), beta_star=np.zeros(2), sigma=0.0)
    trajectory = train(
        make(LinearTransformerBlock), task, steps=30, batch=8, lr=0.05, rng=np.random.default_rng(0)
    )
    assert trajectory.risk[-1] < 0.1 * trajectory.risk[0]
