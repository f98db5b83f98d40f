"""Training: it reaches the exact minima, repeats bit for bit, and says when it diverges."""

import re
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
    lsa_minimum,
    lsa_risk,
    ltb_minimum,
    ltb_risk,
    reduced_form,
    sample_short,
    short_predictions,
    train,
)

TASK = RegressionTask.isotropic(d=2, M=8, psi=0.5, signal=1.0, sigma=0.5)
KINDS = [LinearSelfAttention, LinearTransformerBlock]


def make(kind: type[LinearSelfAttention], seed: int = 0, d: int = 2) -> LinearSelfAttention:
    return kind(d, torch.Generator().manual_seed(seed))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def run(*layers: LinearSelfAttention, seeds: tuple[int, ...] = (), **changes: Any) -> Trajectory:  # noqa: ANN401
    """A short run; prompts are drawn from `seeds`, or from 0, 1, ..., one for each layer."""
    options: dict[str, Any] = {"steps": 30, "batch": 16, "lr": 0.02, **changes}
    rngs = [rng(seed) for seed in seeds or range(len(layers))]
    return train(layers, TASK, **{"rngs": rngs, **options})


def risk_of(layer: LinearSelfAttention) -> float:
    risk = ltb_risk if isinstance(layer, LinearTransformerBlock) else lsa_risk
    return risk(TASK, *layer.reduced())


@pytest.mark.parametrize("kind", KINDS)
def test_training_settles_within_one_per_cent_of_the_exact_minimum(
    kind: type[LinearSelfAttention],
) -> None:
    least = {LinearSelfAttention: lsa_minimum, LinearTransformerBlock: ltb_minimum}[kind](TASK)
    trajectory = run(make(kind, 0), make(kind, 1), steps=800, batch=128, lr=0.03)
    assert (trajectory.risk[:, 0] > 1.2 * least.risk).all()
    assert (trajectory.risk[:, -1] < 1.01 * least.risk).all()
    assert (trajectory.risk > (1 - 1e-12) * least.risk).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_adam_on_the_squared_error_of_short_prompts(
    kind: type[LinearSelfAttention],
) -> None:
    """By a plain optimiser, one run at a time, with the same prompts: the same weights."""
    steps, batch, lr = 40, 16, 0.02
    trained = [make(kind, 0), make(kind, 1)]
    run(*trained, steps=steps)
    for seed, layer in enumerate(trained):
        plain, source = make(kind, seed), rng(seed)
        optimiser = torch.optim.Adam(plain.parameters(), lr=lr)
        drawn = [sample_short(TASK, 8 * batch, source) for _ in range(5)]  # as train draws them
        prompts, target = (
            [torch.tensor(np.concatenate([getattr(p, name) for p in drawn])) for name in names]
            for names in (("chi2", "normal", "task", "query"), ("target",))
        )
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = lr * (1 + np.cos(np.pi * step / steps)) / 2
            now = slice(step * batch, (step + 1) * batch)
            form = reduced_form(dict(plain.named_parameters()))
            optimiser.zero_grad()
            predictions = short_predictions(TASK, form, *(part[now] for part in prompts))
            (predictions - target[0][now]).square().mean().backward()
            optimiser.step()
        for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_layer_that_reads_nothing_learns_without_a_division_by_zero() -> None:
    layer = LinearTransformerBlock(2)  # all weights 0: no gradient either
    assert run(layer).risk[0, -1] == ltb_risk(TASK, np.zeros(2), np.zeros(3), np.zeros((2, 3)))


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
    other_data, other_start = run(make(kind), seeds=(1,)), run(make(kind, seed=1))
    assert other_data.risk[0, 0] == first.risk[0, 0]
    assert other_data.risk[0, -1] != first.risk[0, -1]
    assert other_start.risk[0, 0] != first.risk[0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_side_by_side_are_the_runs_alone(kind: type[LinearSelfAttention]) -> None:
    together = run(*(make(kind, seed) for seed in range(3)))
    alone = [run(make(kind, seed), seeds=(seed,)).risk[0] for seed in range(3)]
    # A batched product may round otherwise, and Adam carries the difference along.
    np.testing.assert_allclose(together.risk, alone, rtol=1e-8)


def test_recording_does_not_change_the_run() -> None:
    often = run(make(LinearTransformerBlock))
    seldom = run(make(LinearTransformerBlock), records=2)
    np.testing.assert_array_equal(often.steps, np.arange(31))
    np.testing.assert_array_equal(seldom.steps, [0, 30])
    np.testing.assert_array_equal(seldom.risk, often.risk[:, [0, -1]])


def test_the_trajectory_begins_before_the_first_step_and_ends_after_the_last() -> None:
    layers = [make(LinearTransformerBlock, seed) for seed in range(2)]
    before = [risk_of(layer) for layer in layers]
    trajectory = run(*layers, steps=50, records=6)
    np.testing.assert_array_equal(trajectory.steps, [0, 10, 20, 30, 40, 50])
    assert trajectory.risk.shape == (2, 6)
    np.testing.assert_allclose(trajectory.risk[:, 0], before, rtol=1e-12)
    after = [risk_of(layer) for layer in layers]
    np.testing.assert_allclose(trajectory.risk[:, -1], after, rtol=1e-12)


def test_a_task_without_signal_or_noise_is_learned_to_nothing() -> None:
    """Labels that are all 0: the risk falls towards 0 and nothing divides by it."""
    task = replace(TASK, Psi=np.zeros((2, 2)), beta_star=np.zeros(2), sigma=0.0)
    layer = make(LinearTransformerBlock)
    trajectory = train([layer], task, steps=30, batch=8, lr=0.05, rngs=[rng()])
    assert trajectory.risk[0, -1] < 0.1 * trajectory.risk[0, 0]


# --- divergence and bad input ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lr", [1e60, 1e100, 1e300])
def test_divergence_is_an_error_that_names_run_and_step(
    kind: type[LinearSelfAttention], lr: float
) -> None:
    message = r"^training diverged: the risk of run 0 is \S+ at step 1$"
    with pytest.raises(FloatingPointError, match=message):
        run(make(kind, 0), make(kind, 1), lr=lr)


def test_divergence_between_records_is_seen_too() -> None:
    good, bad = make(LinearSelfAttention, 0), make(LinearSelfAttention, 1)
    message = r"^training diverged: the loss of run 0 is \S+ at step 1$"
    with pytest.raises(FloatingPointError, match=message):
        run(good, bad, lr=1e80, records=2)
    with torch.no_grad():
        for weight in bad.parameters():
            weight *= 1e45  # the risk, of order 1e45 to the eighth, has no room in float64
    message = r"^training diverged: the risk of run 1 is \S+ at step 0$"
    with pytest.raises(FloatingPointError, match=message):
        run(make(LinearSelfAttention, 0), bad)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_do_not_fit_are_refused(kind: type[LinearSelfAttention]) -> None:
    with pytest.raises(ValueError, match=r"^layers: got one for d = 3, expected d = 2"):
        run(make(kind), make(kind, d=3))
    with pytest.raises(ValueError, match=r"^layers: got kinds \[\], expected at least one layer"):
        run()
    both = re.escape("['LinearSelfAttention', 'LinearTransformerBlock'], expected")
    with pytest.raises(ValueError, match=r"^layers: got kinds " + both):
        run(*(make(kind) for kind in KINDS))
    layer = make(kind)
    with pytest.raises(ValueError, match=r"^layers: got 1 different ones in 2, expected"):
        run(layer, layer)


def test_every_run_needs_its_own_generator() -> None:
    shared = rng()
    for rngs, given in (
        ([rng()], 1),
        ([shared, shared], 1),
        ([], 0),
        ([rng(k) for k in range(3)], 3),
    ):
        message = f"^rngs: got {given} generators, expected one of its own for each of the 2"
        with pytest.raises(ValueError, match=message):
            run(make(LinearSelfAttention, 0), make(LinearSelfAttention, 1), rngs=rngs)


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
    before = risk_of(layer)
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected"):
        run(layer, **{name: bad})
    assert risk_of(layer) == before
