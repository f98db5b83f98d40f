"""Training in coordinates is SGD on the model itself: the same steps, the same bits, in batches."""

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from iclbook.nonlinear import (
    OneLayerTransformer,
    Patterns,
    Prompts,
    Trajectory,
    World,
    all_tasks,
    draw_world,
    evaluate,
    hinge_loss,
    out_of_domain,
    sample_prompts,
    train,
)
from iclbook.nonlinear import training as inside

M1, M2, DX, DY = 5, 4, 10, 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def world(beta: float = 1.2, seed: int = 9, distances: tuple[int, ...] = (1, 3)) -> World:
    return draw_world(rng(seed), M1=M1, M2=M2, dX=DX, dY=DY, beta=beta, distances=distances)


def unseen(given: World, n: int = 50, seed: int = 77, l: int = 7) -> Prompts:
    return sample_prompts(given.patterns, given.held_out, n, l, 0.8, rng(seed))


def make(seed: int = 0, spread: float = 0.2, m: int = 12, **options: Any) -> OneLayerTransformer:  # noqa: ANN401
    """A model away from its start, so that every weight has a gradient; or at it, with spread 0."""
    generator = torch.Generator().manual_seed(seed)
    model = OneLayerTransformer(DX, DY, m, generator, **options)
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += (spread * draw).to(weight.dtype)
    return model


def run(*models: OneLayerTransformer, seeds: tuple[int, ...] = (), **changes: Any) -> Trajectory:  # noqa: ANN401
    """A short run; prompts are drawn from `seeds`, or from 0, 1, ..., one for each model."""
    worlds = changes.get("worlds", world())
    each = [worlds] * len(models) if isinstance(worlds, World) else worlds
    options: dict[str, Any] = {
        "worlds": worlds, "evaluation": [unseen(given) for given in each], "steps": 20,
        "batch": 16, "l": 7, "alpha": 0.8, "lr": 0.3, "records": 3,
        "rngs": [rng(seed) for seed in seeds or range(len(models))],
    }  # fmt: skip
    return train(models, **{**options, **changes})


def weights(model: OneLayerTransformer) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in model.parameters()]


def assert_same(first: OneLayerTransformer, second: OneLayerTransformer, atol: float = 0) -> None:
    for one, other in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("before", [0, 2000])
def test_a_step_is_plain_sgd_on_the_hinge_loss_of_the_readable_model(before: int) -> None:
    """From the start, and after training, when most prompts have loss 0 and are left out."""
    fast = [make(0), make(1)]
    given = [world(1.2), world(0.8, 3, (1, 2))]
    if before:
        run(*fast, worlds=given, steps=before, seeds=(2, 3))
    slow, start = copy.deepcopy(fast), copy.deepcopy(fast)
    run(*fast, steps=20, batch=48, lr=0.2, alpha=0.7, worlds=given)
    busy = []
    for r, model in enumerate(slow):
        source = rng(r)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
        for size in (48 * 16, 48 * 4):  # as train draws them
            P = sample_prompts(given[r].patterns, given[r].trained, size, 7, 0.7, source)
            for first in range(0, size, 48):
                now = slice(first, first + 48)
                optimiser.zero_grad()
                output = model(P.tokens[now], P.query[now])
                hinge_loss(output, P.label[now]).backward()
                optimiser.step()
                busy.append(int((torch.tensor(P.label[now]) * output < 1).sum()))
        assert_same(fast[r], model, atol=1e-12)
        moved = [np.abs(a - b).max() for a, b in zip(*map(weights, (model, start[r])), strict=True)]
        assert min(moved) > 1e-3
    left_out = [2 < most < 24 for most in np.maximum(busy[:20], busy[20:])]
    assert any(left_out) == (before > 0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    """One step with lr = 1 moves each weight by minus its gradient."""
    model = make(2)
    drawn = sample_prompts(world().patterns, world().trained, 16, 7, 0.8, rng(0))
    moved = copy.deepcopy(model)
    run(moved, steps=1, lr=1.0)
    pick = rng(5)
    for name, weight in model.named_parameters():
        gradient = (weight - moved.get_parameter(name)).detach().numpy()
        direction = torch.tensor(pick.standard_normal(weight.shape))
        losses = []
        for h in (1e-6, -1e-6):
            shifted = copy.deepcopy(model)
            with torch.no_grad():
                shifted.get_parameter(name).add_(h * direction)
            losses.append(evaluate(shifted, drawn).loss)
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx((gradient * direction.numpy()).sum(), rel=1e-5, abs=1e-9)


def test_the_same_seeds_train_the_same_weights_bit_for_bit() -> None:
    first, second, third = make(), make(), make()
    one, two = run(first), run(second)
    assert_same(first, second)
    np.testing.assert_array_equal(one.loss, two.loss)
    run(third, seeds=(5,))
    assert any((a != b).any() for a, b in zip(weights(first), weights(third), strict=True))


def test_runs_side_by_side_are_the_runs_alone() -> None:
    """With patterns and tasks of their own."""
    worlds = [world(1.2), world(0.8, 3), world(1.5, 4, (2, 3))]
    together, alone = [make(s) for s in range(3)], [make(s) for s in range(3)]
    trajectory = run(*together, worlds=worlds)
    for r, model in enumerate(alone):
        single = run(model, seeds=(r,), worlds=worlds[r])
        assert_same(together[r], model, atol=1e-12)
        np.testing.assert_allclose(trajectory.loss[r], single.loss[0], atol=1e-12)
        np.testing.assert_array_equal(trajectory.error[r], single.error[0])


def test_the_trajectory_is_that_of_the_model_on_the_prompts_that_were_given() -> None:
    """Also on prompts about other patterns, of other numbers, than those of the training."""
    old = world().patterns
    k = np.eye(M1)[[0, 2, 3]] @ np.linalg.qr(rng(4).standard_normal((M1, M1)))[0]
    new = out_of_domain(old, k, rng(5))
    for fixed in (unseen(world()), sample_prompts(new, all_tasks(3), 30, 11, 0.6, rng(6))):
        model = make()
        start = copy.deepcopy(model)
        trajectory = run(model, evaluation=[fixed], snapshots=True, records=5)
        assert trajectory.steps.tolist() == [0, 5, 10, 15, 20]
        assert trajectory.steps.dtype.kind == "i"
        for mark, (kept,) in enumerate(trajectory.snapshots):
            found = evaluate(kept, fixed)
            assert trajectory.loss[0, mark] == pytest.approx(found.loss, abs=1e-12)
            assert trajectory.error[0, mark] == found.error
        assert_same(trajectory.snapshots[0][0], start)
        assert_same(trajectory.snapshots[-1][0], model)
    assert run(make()).snapshots == ()


def test_what_is_evaluated_does_not_change_the_training() -> None:
    few, many = make(), make()
    run(few)
    run(many, evaluation=[unseen(world(), 300, seed=1)], records=7, snapshots=True)
    assert_same(few, many)


def test_the_step_at_which_the_loss_falls_below_a_level_is_log_linear_between_marks() -> None:
    loss = np.exp([[0.0, -0.1, -2.0, -4.0], [0.0, -1.0, -3.5, -2.0]])
    trajectory = Trajectory(np.array([0, 10, 20, 40]), loss, loss, ())
    np.testing.assert_allclose(trajectory.first_below(np.exp(-3.0)), [30, 18])
    np.testing.assert_allclose(trajectory.first_below(np.exp(-0.5)), [10 + 10 * 0.4 / 1.9, 5])
    np.testing.assert_array_equal(np.searchsorted(trajectory.steps, [30, 18]), [3, 2])
    gone = Trajectory(np.array([0, 10, 20]), np.array([[1.0, 0.5, 0.0]]), loss, ())
    assert np.searchsorted(gone.steps, gone.first_below(0.1)) == 2  # the mark at which it is 0
    for level in (np.exp(-3.7), 1.5):  # one run never is below it; all are from the start
        with pytest.raises(ValueError, match=f"level: got {level}, expected one that all runs"):
            trajectory.first_below(level)


def test_relabelling_the_patterns_relabels_nothing_else() -> None:
    """Patterns in another order, with tasks that follow them, are the same problem."""
    order = rng(8).permutation(M1)
    P = world().patterns
    permuted = Patterns(P.mu[order], P.nu, P.q)
    place = np.argsort(order)
    drawn = sample_prompts(P, all_tasks(M1), 30, 7, 0.8, rng())
    same = replace(drawn, patterns=permuted, pattern=place[drawn.pattern], task=place[drawn.task])
    np.testing.assert_allclose(
        evaluate(make(), same).output, evaluate(make(), drawn).output, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_learns_tasks_that_it_never_saw(dtype: torch.dtype) -> None:
    models = [make(s, spread=0, m=40, dtype=dtype) for s in range(2)]
    trajectory = run(
        *models, worlds=world(2.0), steps=400, batch=128, l=20,
        evaluation=[unseen(world(2.0), 1000, seed, l=20) for seed in range(2)],
    )  # fmt: skip
    assert (trajectory.error[:, 0] > 0.4).all()
    assert (trajectory.error[:, -1] < 0.02).all()
    assert models[0].W_O.dtype == dtype


def test_divergence_names_the_run_and_the_step_and_leaves_the_models() -> None:
    models = [make(0), make(1)]
    with torch.no_grad():
        models[1].W_O *= 1e200
    before = copy.deepcopy(models)
    with pytest.raises(FloatingPointError, match=r"diverged: loss \S+ of run 1 at step \d+"):
        run(*models)
    for model, start in zip(models, before, strict=True):
        assert_same(model, start)


def test_a_step_without_a_loss_changes_nothing() -> None:
    model = make()
    drawn = sample_prompts(world().patterns, [(0, 1)], 16, 7, 1.0, rng())
    wins = np.sign(evaluate(model, drawn).output).astype(np.int8)
    batch = inside._as_batch(  # noqa: SLF001 - a batch that `train` would have to find by luck
        [replace(drawn, label=wins)], torch.float64
    )
    with torch.no_grad():
        model.a *= 1e9
    state = inside._as_state([model], [drawn.patterns])  # noqa: SLF001
    before = copy.deepcopy(state)
    inside._step(state, batch, 1.0, 0)  # noqa: SLF001
    for value, old in zip(state, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0)


def test_numbers_may_come_as_arrays_and_tensors_without_dimensions() -> None:
    plain, given = make(), make()
    run(plain, lr=1.0, alpha=0.5, steps=3)
    run(given, lr=np.array(1), alpha=torch.tensor(0.5, dtype=torch.float64), steps=np.int64(3))
    assert_same(plain, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"batch": 0}, "batch: got 0"),
        ({"l": 0}, "l: got 0"),
        ({"records": 1}, "records: got 1"),
        ({"lr": 0.0}, "lr: got 0.0, expected a positive step size"),
        ({"lr": [0.1, 0.1]}, "lr: got shape (2,), expected ()"),
        ({"alpha": 1.5}, "alpha: got 1.5"),
        ({"kappa": -1.0}, "kappa: got -1.0"),
        ({"rngs": [rng()] * 2}, "rngs: got 1 different ones, expected 2, one a run"),
        ({"rngs": [rng(), rng(), rng()]}, "rngs: got 3 different ones, expected 2"),
        ({"rngs": [1, 2]}, "rng: got 1, expected a numpy.random.Generator"),
        ({"worlds": [world()], "evaluation": [unseen(world())] * 2}, "worlds: got 1 with"),
        ({"evaluation": [unseen(world())]}, "evaluation: got 1 with"),
        (
            {"evaluation": [unseen(world(), 5), unseen(world(), 6)]},
            "evaluation: got shapes (n, l + 1) in",
        ),
        (
            {"worlds": draw_world(rng(), M1=5, M2=4, dX=9, dY=3)},
            "worlds: got 2 with (dX, dY, M1, M2) in {(9, 3, 5, 4)}, expected one for each of 2",
        ),
        (
            {"worlds": [world(), draw_world(rng(), M1=4, M2=4, dX=DX, dY=DY)]},
            "and one M1 and M2",
        ),
    ],
)
def test_a_wrong_argument_is_named_before_anything_moves(
    changes: dict[str, Any], message: str
) -> None:
    models = [make(0), make(1)]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(*models, **changes)
    assert_same(models[0], make(0))


def test_models_that_cannot_run_side_by_side_are_refused() -> None:
    model = make()
    for models in ((), (model, model), (model, make(m=5)), (model, make(dtype=torch.float32))):
        with pytest.raises(ValueError, match=r"models: got \d different ones, of \(dX, dY, m"):
            run(*models)


def test_a_model_is_not_evaluated_on_patterns_of_other_dimensions() -> None:
    other = draw_world(rng(), M1=3, M2=2, dX=9, dY=DY)
    drawn = sample_prompts(other.patterns, other.trained, 5, 4, 0.5, rng())
    with pytest.raises(ValueError, match=r"prompts: got 1 with \(dX, dY, M1, M2\)"):
        evaluate(make(), drawn)
