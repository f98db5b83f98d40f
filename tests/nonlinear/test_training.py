"""Training in coordinates is SGD on the model itself: the same steps, the same bits, in batches."""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch

from iclbook.nonlinear import (
    History,
    OneLayerTransformer,
    Patterns,
    all_tasks,
    build_prompts,
    evaluate,
    hinge_loss,
    orthogonal_patterns,
    sample_indices,
    train,
    training_tasks,
)
from iclbook.nonlinear import training as inside

M1, M2, DX, DY = 5, 4, 10, 3
TRAINED, UNSEEN = training_tasks(M1, np.random.default_rng(0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def patterns(beta: float = 1.2, seed: int = 9) -> Patterns:
    return orthogonal_patterns(M1, M2, DX, DY, beta, rng(seed))


def make(seed: int = 0, spread: float = 0.2, m: int = 12, **options: Any) -> OneLayerTransformer:  # noqa: ANN401
    """A model away from its start, so that every weight has a gradient; or at it, with spread 0."""
    generator = torch.Generator().manual_seed(seed)
    model = OneLayerTransformer(DX, DY, m, generator, **options)
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += (spread * draw).to(weight.dtype)
    return model


def run(*models: OneLayerTransformer, seeds: tuple[int, ...] = (), **changes: Any) -> History:  # noqa: ANN401
    """A short run; prompts are drawn from `seeds`, or from 0, 1, ..., one for each model."""
    options: dict[str, Any] = {
        "patterns": patterns(), "tasks": TRAINED, "eval_tasks": UNSEEN, "steps": 20, "batch": 16,
        "l": 7, "alpha": 0.8, "lr": 0.3, "eval_n": 50, "records": 3,
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
    given = [patterns(1.2), patterns(0.8, 3)]
    if before:
        run(*fast, patterns=given, steps=before, seeds=(2, 3))
    slow, start = copy.deepcopy(fast), copy.deepcopy(fast)
    settings = {
        "alpha": [0.9, 0.5],
        "lr": [0.2, 0.1],
        "patterns": given,
    }
    run(*fast, steps=20, batch=48, **settings)
    busy = []
    for r, model in enumerate(slow):
        source = rng(r)
        sample_indices(M1, M2, UNSEEN, 50, 7, 0.8, source)  # the evaluation prompts come first
        optimiser = torch.optim.SGD(model.parameters(), lr=settings["lr"][r])
        for size in (48 * 16, 48 * 4):  # as train draws them
            drawn = sample_indices(M1, M2, TRAINED, size, 7, settings["alpha"][r], source)
            P = build_prompts(given[r], drawn)
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
    P = patterns()
    source = rng(0)
    sample_indices(M1, M2, UNSEEN, 50, 7, 0.8, source)
    drawn = sample_indices(M1, M2, TRAINED, 16, 7, 0.8, source)
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
            losses.append(evaluate(shifted, P, drawn).loss)
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
    together, alone = [make(s) for s in range(3)], [make(s) for s in range(3)]
    settings = [{"lr": 0.1 * (s + 1), "alpha": 1 - 0.2 * s} for s in range(3)]
    history = run(*together, **{name: [s[name] for s in settings] for name in ("lr", "alpha")})
    for r, model in enumerate(alone):
        single = run(model, seeds=(r,), **settings[r])
        assert_same(together[r], model, atol=1e-12)
        np.testing.assert_allclose(history.loss[r], single.loss[0], atol=1e-12)
        np.testing.assert_array_equal(history.error[r], single.error[0])


def test_runs_may_have_tasks_of_their_own() -> None:
    other = training_tasks(M1, rng(1))[0]
    together, alone = [make(0), make(0)], [make(0), make(0)]
    run(*together, tasks=[TRAINED, other], seeds=(0, 1))
    for r, tasks in enumerate([TRAINED, other]):
        run(alone[r], tasks=tasks, seeds=(r,))
        assert_same(together[r], alone[r], atol=1e-12)


def test_runs_that_share_their_prompts_see_those_of_one_generator() -> None:
    shared, alone = [make(0), make(1)], [make(0), make(1)]
    run(*shared, rngs=[rng(4)], lr=[0.3, 0.1])
    for r, model in enumerate(alone):
        run(model, seeds=(4,), lr=[0.3, 0.1][r])
        assert_same(shared[r], model, atol=1e-12)


def test_the_history_is_that_of_the_model_on_fixed_prompts_of_unseen_tasks() -> None:
    model = make()
    start = copy.deepcopy(model)
    history = run(model, snapshots=True, records=5)
    np.testing.assert_array_equal(history.steps, [0, 5, 10, 15, 20])
    fixed = sample_indices(M1, M2, UNSEEN, 50, 7, 0.8, rng(0))
    for mark, (kept,) in enumerate(history.snapshots):
        found = evaluate(kept, patterns(), fixed)
        assert history.loss[0, mark] == pytest.approx(found.loss, abs=1e-12)
        assert history.error[0, mark] == found.error
    assert_same(history.snapshots[0][0], start)
    assert_same(history.snapshots[-1][0], model)
    assert run(make()).snapshots == ()


def test_more_evaluation_prompts_do_not_change_the_training() -> None:
    few, many = make(), make()
    run(few, eval_n=10)
    run(many, eval_n=300, records=7)
    assert_same(few, many)


def test_relabelling_the_patterns_relabels_nothing_else() -> None:
    """Patterns in another order, with tasks that follow them, are the same problem."""
    order = rng(8).permutation(M1)
    P = patterns()
    permuted = Patterns(P.mu[order], P.nu, P.q)
    place = np.argsort(order)
    drawn = sample_indices(M1, M2, all_tasks(M1), 30, 7, 0.8, rng())
    same = type(drawn)(**{**vars(drawn), "pattern": place[drawn.pattern]})
    np.testing.assert_allclose(
        evaluate(make(), permuted, same).output, evaluate(make(), P, drawn).output, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_learns_tasks_that_it_never_saw(dtype: torch.dtype) -> None:
    models = [make(s, spread=0, m=40, dtype=dtype) for s in range(2)]
    history = run(*models, patterns=patterns(2.0), steps=400, batch=128, l=20, eval_n=1000)
    assert (history.error[:, 0] > 0.4).all()
    assert (history.error[:, -1] < 0.02).all()
    assert models[0].W_O.dtype == dtype


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_divergence_names_the_run_and_the_step() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss of run 1 is \S+ at step \d+"):
        run(make(0), make(1), lr=[0.1, 1e30])


def test_a_step_without_a_loss_changes_nothing() -> None:
    model = make()
    P = patterns()
    drawn = sample_indices(M1, M2, [(0, 1)], 16, 7, 1.0, rng())
    wins = np.sign(evaluate(model, P, drawn).output).astype(np.int8)
    batch = inside._as_batch(  # noqa: SLF001 - a batch that `train` would have to find by luck
        M1, M2, [type(drawn)(**{**vars(drawn), "label": wins})], torch.float64
    )
    with torch.no_grad():
        model.a *= 1e9
    state = inside._as_state([model], [P])  # noqa: SLF001
    before = copy.deepcopy(state)
    inside._step(state, batch, torch.ones(1, 1, 1), 0)  # noqa: SLF001
    for name, value in vars(state).items():
        torch.testing.assert_close(value, getattr(before, name), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"batch": 0}, "batch: got 0"),
        ({"l": 0}, "l: got 0"),
        ({"records": 1}, "records: got 1"),
        ({"eval_n": 0}, "eval_n: got 0"),
        ({"lr": 0.0}, "lr: got 0.0, expected positive step sizes"),
        ({"lr": [0.1]}, "lr: got shape (1,), expected (2)"),
        ({"alpha": [0.5, 1.5]}, "alpha: got 1.5"),
        ({"kappa": -1.0}, "kappa: got -1.0"),
        ({"tasks": [(1, 1)]}, "tasks: got the task (1, 1)"),
        ({"tasks": [TRAINED] * 3}, "tasks: got 3 lists of tasks, expected 2, one a run"),
        ({"eval_tasks": [(0, M1)]}, "eval_tasks: got indices"),
        ({"eval_tasks": np.zeros((0, 2), dtype=int)}, "eval_tasks: got shape (0, 2)"),
        ({"rngs": [rng()] * 2}, "rngs: got 1 generators"),
        ({"rngs": [rng(), rng(), rng()]}, "rngs: got 3 generators"),
        ({"rngs": [rng()], "alpha": [0.5, 0.6]}, "rngs: got one for runs with several"),
        ({"patterns": [patterns()]}, "patterns: got 1 for 2 models"),
        ({"patterns": orthogonal_patterns(5, 4, 9, 3, 1.0, rng())}, "patterns: got dX = 9"),
        (
            {"patterns": [patterns(), orthogonal_patterns(4, 4, DX, DY, 1.0, rng())]},
            "patterns: expected the same M1 and M2 for all runs",
        ),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(make(0), make(1), **changes)


def test_models_that_cannot_run_side_by_side_are_refused() -> None:
    model = make()
    for models in ((), (model, model)):
        with pytest.raises(ValueError, match="models: expected at least one, and a different one"):
            run(*models)
    for other in (make(m=5), make(dtype=torch.float32)):
        with pytest.raises(ValueError, match="models: expected one dX, dY, m and dtype"):
            run(model, other)
