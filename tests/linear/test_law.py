"""The exact law of predictions: their distribution and gradients without the examples."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from linear_tasks import random_task
from scipy.stats import chi2 as chi_square
from scipy.stats import ks_2samp

from iclbook.checks import Array
from iclbook.linear import (
    RegressionTask,
    ltb_risk,
    reduced_predictions,
    sample_short,
    short_predictions,
)
from iclbook.linear.law import short_slopes
from iclbook.linear.risk import standardise

SIZES = [(1, 1), (1, 6), (3, 1), (3, 2), (3, 20), (5, 80)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def weights(d: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """u, v and W of order one."""
    source = rng(seed)
    return tuple(torch.tensor(source.standard_normal(k)) for k in ((d,), (d + 1,), (d, d + 1)))


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_a_prediction_is_the_stated_draw_of_gv(d: int, M: int) -> None:
    """Gv = (Q Sigma v / t^2 + sqrt(Q) zeta) / M, put together with a covariance Sigma per task.

    The token z, and with it zeta, is the one whose part across v is `normal` along W^T x.
    """
    task, n = random_task(d, M, rng()), 50
    u, v, W = (part.numpy() for part in weights(d))
    p = sample_short(task, n, rng(2))
    expected = np.empty(n)
    for i in range(n):
        beta = task.beta_star + np.linalg.solve(task.root_H, p.own[i])
        x = task.root_H @ p.query[i]
        lift = np.vstack([np.eye(d), beta])  # an input to (input, label without noise)
        Sigma = lift @ task.H @ lift.T
        Sigma[d, d] += task.sigma**2
        t2, k = v @ Sigma @ v, W.T @ x
        across = Sigma @ k - Sigma @ v * (v @ Sigma @ k) / t2
        z = p.normal[i] * across / np.sqrt(k @ across)
        zeta = z - Sigma @ v * (v @ z) / t2
        Q = t2 * p.chi2[i]
        Gv = (Q / t2 * Sigma @ v + np.sqrt(Q) * zeta) / M
        expected[i] = (u + W @ Gv) @ x
    found = short_predictions(task, *weights(d), p).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_predictions_have_the_law_of_the_layer_on_whole_prompts(d: int, M: int) -> None:
    """Together with the target: their difference and their product, by Kolmogorov and Smirnov."""
    task, n = random_task(d, M, rng(3)), 20_000
    form = weights(d)
    whole, short = task.sample(n, rng(4)), sample_short(task, n, rng(5))
    slow = reduced_predictions(*form, whole.X, whole.y, whole.x)
    slow, fast = slow.numpy(), short_predictions(task, *form, short).numpy()
    for combine in (np.subtract, np.multiply):
        test = ks_2samp(combine(slow, whole.target), combine(fast, short.target))
        assert test.pvalue > 1e-3


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_mean_squared_error_is_the_exact_risk(d: int, M: int) -> None:
    task, form = random_task(d, M, rng(6)), weights(d, 7)
    p = sample_short(task, 200_000, rng(8))
    squares = (short_predictions(task, *form, p).numpy() - p.target) ** 2
    exact = ltb_risk(task, *(part.numpy() for part in form))
    stderr = squares.std() / np.sqrt(squares.size)
    assert abs(squares.mean() - exact) < 4 * stderr
    assert stderr < 0.05 * exact


def both_gradients(task: RegressionTask, form: tuple[torch.Tensor, ...], n: int) -> list[Array]:
    """Mean gradient of the squared error over short and over whole prompts, (batches, weights)."""
    means: list[list[Array]] = [[], []]
    for batch in range(40):
        leaves = [part.clone().requires_grad_() for part in form]
        p, w = sample_short(task, n, rng(100 + batch)), task.sample(n, rng(200 + batch))
        losses = (
            (short_predictions(task, *leaves, p) - torch.tensor(p.target)).square().mean(),
            (reduced_predictions(*leaves, w.X, w.y, w.x) - torch.tensor(w.target)).square().mean(),
        )
        for mean, loss in zip(means, losses, strict=True):
            parts = torch.autograd.grad(loss, leaves)
            mean.append(torch.cat([part.ravel() for part in parts]).numpy())
    return [np.array(mean) for mean in means]


@pytest.mark.parametrize(("d", "M"), [(1, 1), (2, 6), (3, 20)])
def test_mean_gradients_are_the_gradient_of_the_exact_risk(d: int, M: int) -> None:
    task, form = random_task(d, M, rng(9)), weights(d, 10)
    flat = np.concatenate([part.numpy().ravel() for part in form])

    def risk(point: Array) -> float:
        u, v, W = np.split(point, [d, 2 * d + 1])
        return ltb_risk(task, u, v, W.reshape(d, d + 1))

    h = 1e-5
    exact = np.array(
        [(risk(flat + h * e) - risk(flat - h * e)) / (2 * h) for e in np.eye(flat.size)]
    )
    for found in both_gradients(task, form, 2_000):
        standard = (found.mean(axis=0) - exact) / (found.std(axis=0, ddof=1) / np.sqrt(len(found)))
        # Squared t numbers with 39 degrees of freedom, correlated: generous, yet a wrong factor of
        # 1.1 in one entry is far outside.
        assert np.abs(standard).max() < 4.5


def test_gradients_are_those_of_finite_differences() -> None:
    task = random_task(2, 4, rng(18))
    p = sample_short(task, 6, rng(20))

    def predictions(u: torch.Tensor, v: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return short_predictions(task, u, v, W, p)

    assert torch.autograd.gradcheck(predictions, [part.requires_grad_() for part in weights(2, 19)])


@pytest.mark.parametrize(("d", "M"), SIZES)
@pytest.mark.parametrize("signal", [0.0, 1.0, 100.0])
def test_slopes_by_hand_are_autograds(d: int, M: int, signal: float) -> None:
    """Three runs at once, each with prompts of its own, against one at a time through torch."""
    task = random_task(d, M, rng(21))
    task = replace(task, beta_star=signal * task.beta_star)
    forms = [weights(d, seed) for seed in (22, 23, 24)]
    drawn = [sample_short(task, 50, rng(seed)) for seed in (25, 26, 27)]
    shared = task.root_H @ task.beta_star
    fields = [(p.chi2, p.normal, p.own, p.query, p.target - p.query @ shared) for p in drawn]
    u, v, W = (np.array([part.numpy() for part in parts]) for parts in zip(*forms, strict=True))
    prompts = tuple(
        np.array([part.reshape(50, -1).T for part in parts]) for parts in zip(*fields, strict=True)
    )
    loss, slopes = short_slopes(standardise(task), u[:, :, None], v[:, :, None], W, prompts)
    for run, (form, p) in enumerate(zip(forms, drawn, strict=True)):
        leaves = [part.clone().requires_grad_() for part in form]
        error = short_predictions(task, *leaves, p) - torch.tensor(p.target)
        expected = error.square().mean()
        assert loss[run] == pytest.approx(expected.item(), rel=1e-11)
        for ours, theirs in zip(slopes, torch.autograd.grad(expected, leaves), strict=True):
            theirs = theirs.numpy()
            np.testing.assert_allclose(
                ours[run].reshape(theirs.shape), theirs, rtol=0, atol=1e-10 * np.abs(theirs).max()
            )


@pytest.mark.parametrize("M", [1, 7, 200])
def test_lengths_are_chi_square_and_the_rest_is_independent_of_m(M: int) -> None:
    task = random_task(2, M, rng(11))
    p = sample_short(task, 20_000, rng(12))
    assert ks_2samp(p.chi2, chi_square.rvs(M, size=20_000, random_state=13)).pvalue > 1e-3
    other = sample_short(random_task(2, M + 1, rng(11)), 20_000, rng(12))
    for name in ("own", "query", "target"):
        np.testing.assert_array_equal(getattr(p, name), getattr(other, name))
    np.testing.assert_allclose(
        p.target.var(), task.tau + task.beta_star @ task.H @ task.beta_star, rtol=0.05
    )


def test_without_noise_one_dimension_leaves_nothing_across() -> None:
    """w and k are parallel: the prediction is its chi-square part, with finite gradients."""
    task = random_task(1, 5, rng(16), sigma=0.0)
    u, v, W = (part.requires_grad_() for part in weights(1))
    p = sample_short(task, 100, rng(17))
    predictions = short_predictions(task, u, v, W, p)
    beta = task.beta_star + p.own[:, 0] / task.root_H[0, 0]
    x = p.query[:, 0] * task.root_H[0, 0]
    S = task.H[0, 0] * p.chi2 / 5
    read, ask = v.detach().numpy(), W.detach().numpy()[0]
    expected = x * (u.detach().numpy() + S * (read[0] + read[1] * beta) * (ask[0] + ask[1] * beta))
    np.testing.assert_allclose(predictions.detach().numpy(), expected, rtol=1e-6)
    predictions.square().mean().backward()
    assert all(
        torch.isfinite(part.grad).all() and part.grad.abs().max() < 1e3 for part in (u, v, W)
    )


def test_a_value_path_that_reads_nothing_predicts_the_start() -> None:
    task = random_task(3, 5, rng(14))
    u, v, W = weights(3)
    v = torch.zeros_like(v).requires_grad_()
    p = sample_short(task, 20, rng(15))
    predictions = short_predictions(task, u, v, W, p)
    np.testing.assert_allclose(
        predictions.detach().numpy(), p.query @ task.root_H @ u.numpy(), rtol=1e-12
    )
    predictions.sum().backward()
    assert torch.isfinite(v.grad).all()


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_a_bad_number_of_prompts_is_refused(n: object) -> None:
    with pytest.raises(ValueError, match=r"^n: got .*, expected"):
        sample_short(random_task(2, 3, rng()), n, rng())


def test_a_seed_is_not_a_generator() -> None:
    with pytest.raises(ValueError, match=r"^rng: got 0, expected a numpy.random.Generator"):
        sample_short(random_task(2, 3, rng()), 3, 0)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("u", torch.zeros(3, dtype=torch.float64), "got shape (3,), expected (2)"),
        ("v", torch.zeros(3), "got dtype float32, expected float64"),
        ("W", torch.full((2, 3), torch.nan, dtype=torch.float64), "got 6 entries that are NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name: str,
    bad: Any,  # noqa: ANN401
    message: str,
) -> None:
    task = random_task(2, 3, rng())
    given = {**dict(zip(("u", "v", "W"), weights(2), strict=True)), name: bad}
    with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
        short_predictions(task, **given, prompts=sample_short(task, 3, rng()))
