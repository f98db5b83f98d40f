"""Estimators of the task vector, against textbook formulas and their own averages."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from linear_tasks import random_task

from iclbook.linear import (
    Estimate,
    Prompts,
    RegressionTask,
    bayes_estimate,
    bayes_risk,
    gd_beta_estimate,
    gd_beta_minimum,
    relative_error,
)


def draw(task: RegressionTask, n: int, seed: int = 1) -> Prompts:
    return task.sample(n, np.random.default_rng(seed))


# --- GD-beta --------------------------------------------------------------------------------------


def test_gd_beta_is_one_preconditioned_gradient_step() -> None:
    """beta - Gamma grad, grad that of b -> |X b - y|^2 / (2 M) by central differences."""
    rng = np.random.default_rng(2)
    task = random_task(3, 5, rng)
    beta, Gamma = rng.standard_normal(3), rng.standard_normal((3, 3))
    p = draw(task, 4)

    def loss(b: np.ndarray) -> np.ndarray:
        return np.sum((p.X @ b - p.y) ** 2, axis=1) / (2 * task.M)

    step = 1e-4  # the loss is quadratic: central differences have no error but rounding
    gradient = np.column_stack(
        [(loss(beta + step * e) - loss(beta - step * e)) / (2 * step) for e in np.eye(3)]
    )
    expected = beta - gradient @ Gamma.T
    np.testing.assert_allclose(gd_beta_estimate(beta, Gamma, p.X, p.y), expected, atol=1e-9)


def test_gd_beta_solves_least_squares_in_one_newton_step() -> None:
    """Gamma = (X^T X / M)^-1 reaches the least-squares solution from anywhere."""
    p = draw(random_task(2, 6, np.random.default_rng(3)), 1)
    X, y = p.X[0], p.y[0]
    newton = np.linalg.inv(X.T @ X / 6)
    expected = np.linalg.lstsq(X, y, rcond=None)[0]
    estimate = gd_beta_estimate(np.array([5.0, -3.0]), newton, p.X, p.y)[0]
    np.testing.assert_allclose(estimate, expected, rtol=1e-10)


# --- Bayes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "M"), [(1, 1), (3, 2), (3, 8)])
def test_bayes_is_ridge_regression_around_the_shared_signal(d: int, M: int) -> None:
    """beta* + (X^T X + sigma^2 Psi^-1)^-1 X^T (y - X beta*)."""
    task = random_task(d, M, np.random.default_rng(4), sigma=0.4)
    p = draw(task, 20)
    for X, y, estimate in zip(p.X, p.y, bayes_estimate(task, p.X, p.y), strict=True):
        ridge = X.T @ X + task.sigma**2 * np.linalg.inv(task.Psi)
        expected = task.beta_star + np.linalg.solve(ridge, X.T @ (y - X @ task.beta_star))
        np.testing.assert_allclose(estimate, expected, rtol=1e-10)


def test_bayes_is_the_conditional_mean_of_the_joint_gaussian() -> None:
    """E[beta | y] = beta* + Psi X^T (X Psi X^T + sigma^2 I)^-1 (y - X beta*), singular Psi too."""
    task = random_task(4, 3, np.random.default_rng(5), sigma=0.4, rank_Psi=2)
    p = draw(task, 20)
    for X, y, estimate in zip(p.X, p.y, bayes_estimate(task, p.X, p.y), strict=True):
        covariance = X @ task.Psi @ X.T + task.sigma**2 * np.eye(3)
        gain = np.linalg.solve(covariance, X @ task.Psi).T
        expected = task.beta_star + gain @ (y - X @ task.beta_star)
        np.testing.assert_allclose(estimate, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("d", "M", "rank"), [(3, 2, 3), (3, 7, 3), (4, 6, 2)])
def test_without_noise_bayes_is_the_limit_of_little_noise(d: int, M: int, rank: int) -> None:
    task = random_task(d, M, np.random.default_rng(6), sigma=0.0, rank_Psi=rank)
    p = draw(task, 20)
    limit = bayes_estimate(replace(task, sigma=1e-5), p.X, p.y)
    exact = bayes_estimate(task, p.X, p.y)
    np.testing.assert_allclose(exact, limit, atol=1e-6)
    np.testing.assert_allclose((p.X @ exact[:, :, None])[:, :, 0], p.y, atol=1e-9)
    if rank <= M:
        np.testing.assert_allclose(exact, p.beta, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_bayes_stays_where_tasks_are(sigma: float) -> None:
    """For singular Psi the estimate lies in beta* + range(Psi)."""
    task = random_task(5, 4, np.random.default_rng(7), sigma=sigma, rank_Psi=2)
    p = draw(task, 20)
    values, vectors = np.linalg.eigh(task.Psi)
    outside = (bayes_estimate(task, p.X, p.y) - task.beta_star) @ vectors[:, values < 1e-10]
    np.testing.assert_allclose(outside, 0.0, atol=1e-12)


def test_bayes_of_one_known_task_is_that_task() -> None:
    task = RegressionTask(np.eye(2), np.zeros((2, 2)), [1.0, -2.0], 0.5, 3)
    p = draw(task, 5)
    np.testing.assert_array_equal(bayes_estimate(task, p.X, p.y), np.tile([1.0, -2.0], (5, 1)))
    assert bayes_risk(task, 5, np.random.default_rng(0)).mean == 0.25
    assert bayes_risk(task, 5, np.random.default_rng(0)).stderr == 0.0


def test_the_posterior_error_is_orthogonal_to_every_estimate() -> None:
    """E (beta - E[beta | prompt]) g(prompt)^T = 0, with g the posterior mean and X^T y / M."""
    task = random_task(2, 3, np.random.default_rng(8), sigma=0.5)
    p = draw(task, 100_000)
    estimate = bayes_estimate(task, p.X, p.y)
    error = p.beta - estimate
    for seen in (estimate, np.einsum("nmd,nm->nd", p.X, p.y) / task.M, np.ones((len(p.y), 1))):
        products = error[:, :, None] * seen[:, None, :]
        z = products.mean(axis=0) / (products.std(axis=0) / np.sqrt(len(p.y)))
        assert np.abs(z).max() < 4


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (1, 1, {}),
    (3, 2, {}),
    (3, 8, {"sigma": 0.2}),
    (3, 2, {"sigma": 0.0}),
    (4, 3, {"rank_Psi": 2, "rank_H": 3}),
]


@pytest.mark.parametrize(("d", "M", "rest"), CASES)
def test_bayes_risk_is_the_mean_squared_error_of_the_bayes_estimate(
    d: int, M: int, rest: dict[str, Any]
) -> None:
    """sigma^2 + E |theta - beta|_H^2, from sampled prompts, and with the queries' own labels."""
    task = random_task(d, M, np.random.default_rng(9), **rest)
    exact = bayes_risk(task, 50_000, np.random.default_rng(10))
    p = draw(task, 50_000, seed=11)
    off = bayes_estimate(task, p.X, p.y) - p.beta
    averaged = np.sum(off @ task.H * off, axis=1) + task.sigma**2
    plain = (np.sum(off * p.x, axis=1) - (p.target - np.sum(p.x * p.beta, axis=1))) ** 2
    for errors in (averaged, plain):
        stderr = np.hypot(errors.std() / np.sqrt(len(errors)), exact.stderr)
        assert abs(errors.mean() - exact.mean) < 4 * stderr
    assert exact.stderr < 0.01 * exact.mean


@pytest.mark.parametrize(("d", "M", "rest"), CASES)
def test_no_gd_beta_beats_bayes(d: int, M: int, rest: dict[str, Any]) -> None:
    task = random_task(d, M, np.random.default_rng(12), **rest)
    bayes = bayes_risk(task, 20_000, np.random.default_rng(13))
    assert task.sigma**2 <= bayes.mean
    assert bayes.mean - 4 * bayes.stderr < gd_beta_minimum(task).risk


def test_bayes_risk_without_noise_counts_the_unseen_dimensions() -> None:
    """H = Psi = I, sigma = 0, M < d: the posterior is free in d - M directions; none if M >= d."""
    for M in (1, 2, 3, 5):
        task = RegressionTask.isotropic(3, M, psi=1.0, signal=1.0, sigma=0.0)
        risk = bayes_risk(task, 200, np.random.default_rng(14))
        assert risk.mean == pytest.approx(max(3 - M, 0), abs=1e-10)
        assert risk.stderr == pytest.approx(0.0, abs=1e-10)


def test_the_standard_error_is_that_of_repeated_runs() -> None:
    task = random_task(3, 4, np.random.default_rng(15))
    runs = [bayes_risk(task, 200, np.random.default_rng([16, k])) for k in range(400)]
    spread = np.std([run.mean for run in runs], ddof=1)
    # The relative deviation of a standard deviation over 400 runs is 1/sqrt(800) = 3.5 %.
    assert np.mean([run.stderr for run in runs]) == pytest.approx(spread, rel=0.14)


def test_bayes_risk_repeats_and_is_drawn_in_chunks_unnoticed() -> None:
    task = random_task(8, 2000, np.random.default_rng(17))  # a chunk holds 262 prompts
    first, second = (bayes_risk(task, 300, np.random.default_rng(18)) for _ in range(2))
    assert first == second
    part = bayes_risk(task, 262, np.random.default_rng(18))
    assert first.mean == pytest.approx(part.mean, abs=5 * part.stderr)
    assert 0 < first.stderr < part.stderr * 1.1


# --- means and errors -----------------------------------------------------------------------------


def test_an_estimate_is_the_mean_with_its_standard_error() -> None:
    """Draws 1, 2, 3, 6: mean 3, variance 14/3, so a standard error of sqrt(7/6)."""
    estimate = Estimate.of([1.0, 2.0, 3.0, 6.0])
    assert estimate.mean == 3.0
    assert estimate.stderr == pytest.approx(np.sqrt(7 / 6), rel=1e-15)
    assert estimate.z(3.0 - 2.0 * estimate.stderr) == pytest.approx(2.0, rel=1e-14)


def test_z_scores_of_true_means_are_standard_normal() -> None:
    draws = np.random.default_rng(21).standard_normal((2000, 200)) + 5.0
    scores = np.array([Estimate.of(row).z(5.0) for row in draws])
    assert abs(scores.mean()) < 4 / np.sqrt(2000)
    assert scores.std() == pytest.approx(1.0, abs=4 / np.sqrt(4000) + 1 / 200)


def test_a_relative_error_does_not_depend_on_units_or_shape() -> None:
    assert relative_error([3.0, 4.0], [0.0, 5.0]) == pytest.approx(np.sqrt(10) / 5, rel=1e-15)
    found, expected = np.random.default_rng(22).standard_normal((2, 3, 4))
    error = relative_error(found, expected)
    assert relative_error(1e-9 * found, 1e-9 * expected) == pytest.approx(error, rel=1e-14)
    assert relative_error(found.ravel(), expected.ravel()) == pytest.approx(error, rel=1e-14)
    assert relative_error(expected, expected) == 0.0


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("X", np.zeros((4, 3)), "got shape (4, 3), expected (any, any, 2)"),
        ("X", np.zeros((4, 3, 5)), "got shape (4, 3, 5), expected (any, any, 2)"),
        ("X", np.full((4, 3, 2), np.nan), "got 24 entries that are NaN or infinite"),
        ("X", np.zeros((4, 3, 2), np.float32), "got dtype float32, expected float64"),
        ("X", np.zeros((0, 3, 2)), "got shape (0, 3, 2), expected (any, any, 2)"),
        ("y", np.zeros((4, 2)), "got shape (4, 2), expected (4, 3)"),
        ("y", np.full((4, 3), np.inf), "got 12 entries that are NaN or infinite"),
        ("y", "labels", "got dtype <U6, expected float64"),
    ],
)
def test_bad_prompts_are_refused(name: str, bad: Any, message: str) -> None:  # noqa: ANN401
    task = random_task(2, 3, np.random.default_rng(19))
    prompts = {"X": np.zeros((4, 3, 2)), "y": np.zeros((4, 3)), name: bad}
    with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
        bayes_estimate(task, **prompts)
    if "5)" not in message:  # gd_beta_estimate learns d from X
        with pytest.raises(ValueError, match=f"^{name}: got .*, expected"):
            gd_beta_estimate(np.zeros(2), np.eye(2), **prompts)


def test_bad_gd_beta_weights_are_refused() -> None:
    X, y = np.zeros((4, 3, 2)), np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"^beta: got shape \(3,\), expected \(2\)"):
        gd_beta_estimate(np.zeros(3), np.eye(2), X, y)
    with pytest.raises(ValueError, match=r"^Gamma: got shape \(3, 3\), expected \(2, 2\)"):
        gd_beta_estimate(np.zeros(2), np.eye(3), X, y)


@pytest.mark.parametrize("n", [1, 0, 2.5, True, "10"])
def test_a_standard_error_needs_two_prompts(n: Any) -> None:  # noqa: ANN401
    task = random_task(2, 3, np.random.default_rng(20))
    with pytest.raises(ValueError, match=r"^n: got .*, expected an integer of at least 2"):
        bayes_risk(task, n, np.random.default_rng(0))


def test_bad_draws_and_arrays_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^number of values: got 1, expected an integer of at lea"
    ):
        Estimate.of([1.0])
    with pytest.raises(ValueError, match=r"^values: got 1 entries that are NaN"):
        Estimate.of([1.0, np.nan])
    with pytest.raises(ValueError, match=r"^found: got shape \(1,\), expected \(2\)"):
        relative_error([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^expected: got 1 entries that are NaN"):
        relative_error([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match=r"^\|expected\|: got 0.0, expected a positive number"):
        relative_error([1.0], [0.0])
    with pytest.raises(ValueError, match=r"^rng: got 3, expected a numpy.random.Generator"):
        bayes_risk(random_task(2, 3, np.random.default_rng(20)), 10, 3)
