"""Training: it reaches the exact minima, repeats bit for bit, and says when it diverges."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from linear_tasks import random_task

from iclbook.linear import (
    LinearSelfAttention,
    LinearTransformerBlock,
    RegressionTask,
    ShortPrompts,
    Trajectory,
    descend,
    gd_beta_minimum,
    lsa_minimum,
    lsa_risk,
    ltb_gradient,
    ltb_hessian,
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


def plainly(layer: LinearSelfAttention, loss: Callable[[int], torch.Tensor], steps: int) -> None:
    """`steps` steps of torch's own Adam, the step size along half a cosine from 0.02."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_torchs_adam_on_the_squared_error_of_short_prompts(
    kind: type[LinearSelfAttention],
) -> None:
    """One run at a time, by autograd and torch, on the same prompts: the same weights."""
    steps, batch = 40, 16
    trained = [make(kind, 0), make(kind, 1)]
    run(*trained, steps=steps, batch=batch)
    for seed, layer in enumerate(trained):
        plain, source = make(kind, seed), rng(seed)
        drawn = [sample_short(TASK, 8 * batch, source) for _ in range(5)]  # as train draws them

        def loss(
            step: int, plain: LinearSelfAttention = plain, drawn: list[ShortPrompts] = drawn
        ) -> torch.Tensor:
            start = step % 8 * batch
            now = ShortPrompts(
                *(
                    getattr(drawn[step // 8], f.name)[start : start + batch]
                    for f in fields(drawn[0])
                )
            )
            form = reduced_form(dict(plain.named_parameters()))
            errors = short_predictions(TASK, *form, now) - torch.tensor(now.target)
            return errors.square().mean()

        plainly(plain, loss, steps)
        for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_is_torchs_adam_on_the_exact_risk(kind: type[LinearSelfAttention]) -> None:
    """The risk as a mean over 3^d task vectors, which is exact for a polynomial of degree 5."""
    tasks = [random_task(2, M, rng(M)) for M in (3, 8)]
    trained = [make(kind, 0), make(kind, 1)]
    trajectory = descend(trained, tasks, steps=40, lr=0.02, records=2)
    for run_, (task, layer) in enumerate(zip(tasks, trained, strict=True)):
        plain = make(kind, run_)
        H, grid = torch.tensor(task.H), np.array(np.meshgrid([-1, 0, 1], [-1, 0, 1])).reshape(2, 9)
        weight = torch.tensor(np.where(grid == 0, 2 / 3, 1 / 6).prod(axis=0))
        beta = torch.tensor(task.beta_star + np.sqrt(3) * grid.T @ task.root_Psi)  # (9, d)

        def loss(
            _: int,
            plain: LinearSelfAttention = plain,
            task: RegressionTask = task,
            H: torch.Tensor = H,
            weight: torch.Tensor = weight,
            beta: torch.Tensor = beta,
        ) -> torch.Tensor:
            u, v, W = reduced_form(dict(plain.named_parameters()))
            total = 0.0
            for b, share in zip(beta, weight, strict=True):
                label = H @ b
                Sigma = torch.cat([torch.cat([H, label[:, None]], dim=1), torch.zeros(1, 3)])
                Sigma[2] = torch.cat([label, (b @ label + task.sigma**2)[None]])
                seen = Sigma @ v
                error = u + W @ seen - b
                spread = (v @ seen) * torch.trace(H @ W @ Sigma @ W.T) + W @ seen @ H @ W @ seen
                total = total + share * (error @ H @ error + spread / task.M)
            return total + task.sigma**2

        assert trajectory.risk[run_, 0] == pytest.approx(loss(0).item(), rel=1e-12)
        plainly(plain, loss, 40)
        assert trajectory.risk[run_, 1] == pytest.approx(loss(0).item(), rel=1e-9)
        for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_descent_ends_where_the_exact_gradient_is_0() -> None:
    """At the global minimum, or at a valley whose Hessian has no negative eigenvalue."""
    tasks = [random_task(3, 6, rng(task)) for task in range(2) for _ in range(6)]
    layers = [make(LinearTransformerBlock, seed, 3) for seed in range(12)]
    trajectory = descend(layers, tasks, steps=3000, lr=0.03, records=2)
    least = np.array([gd_beta_minimum(task).risk for task in tasks])
    assert (trajectory.risk[:, -1] > (1 - 1e-12) * least).all()
    assert (trajectory.risk[:, -1] < 1.001 * least).reshape(2, 6).any(axis=1).all()
    for run_, task in enumerate(tasks):
        form = trajectory.u[run_, -1], trajectory.v[run_, -1], trajectory.W[run_, -1]
        assert max(np.abs(part).max() for part in ltb_gradient(task, *form)) < 1e-3
        values = np.linalg.eigvalsh(ltb_hessian(task, *form))
        assert values[0] > -1e-3 * values[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_trajectory_holds_the_weights_in_their_reduced_form(
    kind: type[LinearSelfAttention],
) -> None:
    layers = [make(kind, 0), make(kind, 1)]
    starts = [layer.reduced() for layer in layers]
    trajectory = run(*layers, records=3)
    for run_, layer in enumerate(layers):
        for mark, form in ((0, starts[run_]), (-1, layer.reduced())):
            *u, v, W = form
            np.testing.assert_allclose(trajectory.u[run_, mark], u[0] if u else 0.0, rtol=1e-12)
            np.testing.assert_allclose(trajectory.v[run_, mark], v, rtol=1e-12)
            np.testing.assert_allclose(trajectory.W[run_, mark], W, rtol=1e-12)
        if isinstance(layer, LinearTransformerBlock):
            np.testing.assert_allclose(
                trajectory.Gamma[run_, -1], layer.to_gd_beta()[1], rtol=1e-12
            )


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
    assert trajectory.steps.dtype == np.int64
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
    with pytest.raises(ValueError, match=r"^layers: got 2, 1 of them different, expected"):
        run(layer, layer)


def test_every_run_needs_its_own_generator() -> None:
    shared = rng()
    for rngs, given in (
        ([rng()], "1, 1 of them different"),
        ([shared, shared], "2, 1 of them different"),
        ([], "0, 0 of them different"),
        ([rng(k) for k in range(3)], "3, 3 of them different"),
        ([rng(), 1], "1"),
    ):
        message = f"^rngs: got {given}, expected "
        with pytest.raises(ValueError, match=message):
            run(make(LinearSelfAttention, 0), make(LinearSelfAttention, 1), rngs=rngs)


def test_descent_needs_a_task_for_each_layer() -> None:
    layer = make(LinearTransformerBlock)
    with pytest.raises(ValueError, match=r"^tasks: got 2, expected one for each of 1 layers"):
        descend([layer], [TASK, TASK], steps=1, lr=0.1)
    with pytest.raises(ValueError, match=r"^tasks: got 0, expected one for each of 0 layers"):
        descend([], [], steps=1, lr=0.1)
    with pytest.raises(ValueError, match=r"^layers: got one for d = 2, expected d = 3"):
        descend([layer], [random_task(3, 4, rng())], steps=1, lr=0.1)
    with pytest.raises(ValueError, match=r"^lr: got 0.0, expected a positive step size"):
        descend([layer], [TASK], steps=1, lr=0.0)


@pytest.mark.parametrize("lr", [np.array(3), torch.tensor(3), 3])
def test_a_step_size_that_passes_the_check_is_the_one_used(lr: float) -> None:
    first, second = make(LinearTransformerBlock), make(LinearTransformerBlock)
    run(first, lr=lr, steps=1)
    run(second, lr=3.0, steps=1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


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
