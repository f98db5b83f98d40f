"""Gradients, Hessian, flow and descent of the exact risk of GD-beta."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_tasks import random_task
from scipy.linalg import expm

from iclbook.checks import Array
from iclbook.linear import (
    RegressionTask,
    curvature_in_beta,
    gd_beta_gradient,
    gd_beta_hessian,
    gd_beta_minimum,
    gd_beta_risk,
    gradient_descent,
    gradient_flow,
)
from iclbook.streams import stream

SIZES = [(1, 3), (2, 1), (3, 5), (4, 2)]
TASK = RegressionTask.isotropic(d=2, M=6, psi=0.5, signal=1.0, sigma=0.5)


def pack(beta: Array, Gamma: Array) -> Array:
    return np.append(beta, Gamma.ravel())


def unpack(point: Array, d: int) -> tuple[Array, Array]:
    return point[:d], point[d:].reshape(d, d)


def hessian(task: RegressionTask, point: Array) -> Array:
    return gd_beta_hessian(task, *unpack(point, task.d))


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_gradient_is_the_slope_of_the_exact_risk(d: int, M: int) -> None:
    rng = stream(d, "flow: gradient")
    task, point = random_task(d, M, rng), rng.standard_normal(d + d * d)
    gradient, h = pack(*gd_beta_gradient(task, *unpack(point, d))), 1e-3

    def risk(x: Array) -> float:
        return gd_beta_risk(task, *unpack(x, d))

    # The risk has degree 4 along a line, so this five-point difference is exact up to rounding.
    slope = [
        (8 * (risk(point + h * e) - risk(point - h * e)) - risk(point + 2 * h * e)) / (12 * h)
        + risk(point - 2 * h * e) / (12 * h)
        for e in np.eye(len(point))
    ]
    np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-8 * np.abs(slope).max())


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_hessian_is_the_slope_of_the_gradient_and_symmetric(d: int, M: int) -> None:
    rng = stream(d, "flow: hessian")
    task, point = random_task(d, M, rng), rng.standard_normal(d + d * d)
    computed, h = hessian(task, point), 1e-4
    slope = [
        pack(*gd_beta_gradient(task, *unpack(point + h * e, d)))
        - pack(*gd_beta_gradient(task, *unpack(point - h * e, d)))
        for e in np.eye(len(point))
    ]
    scale = np.abs(computed).max()
    np.testing.assert_allclose(computed, np.array(slope).T / (2 * h), atol=1e-6 * scale)
    np.testing.assert_allclose(computed, computed.T, atol=1e-12 * scale)


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_q_is_the_mean_of_a_square_and_positive_definite(d: int, M: int) -> None:
    """Q = E (I - Gamma S)^T H (I - Gamma S), estimated from drawn prompts."""
    rng = stream(d, "flow: Q")
    task, Gamma = random_task(d, M, rng), rng.standard_normal((d, d))
    X = task.sample(200_000, rng).X
    left = np.eye(d) - Gamma @ (np.swapaxes(X, 1, 2) @ X / M)
    squares = np.swapaxes(left, 1, 2) @ task.H @ left
    z = (squares.mean(axis=0) - curvature_in_beta(task, Gamma)) / (
        squares.std(axis=0) / 200_000**0.5
    )
    assert np.abs(z).max() < 4.5
    for scale in (0.0, 0.1, 1.0, 10.0):
        Q = curvature_in_beta(task, scale * rng.standard_normal((d, d)))
        assert np.linalg.eigvalsh(Q)[0] > 0


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_minimum_is_stationary_and_a_strict_minimum(d: int, M: int) -> None:
    task = random_task(d, M, stream(d, "flow: minimum"))
    least = gd_beta_minimum(task)
    gradient = pack(*gd_beta_gradient(task, least.beta, least.Gamma))
    assert np.abs(gradient).max() < 1e-12
    assert np.linalg.eigvalsh(hessian(task, pack(least.beta, least.Gamma)))[0] > 0


@pytest.mark.parametrize("start", ["far", "zero step", "indefinite step"])
def test_the_flow_descends_to_the_global_minimum(start: str) -> None:
    rng = stream(0, f"flow: {start}")
    task = random_task(3, 5, rng)
    least = gd_beta_minimum(task)
    beta0, Gamma0 = {
        "far": (10 * rng.standard_normal(3), np.eye(3)),
        "zero step": (rng.standard_normal(3), np.zeros((3, 3))),
        "indefinite step": (rng.standard_normal(3), np.diag([2.0, -1.0, 0.0])),
    }[start]
    flow = gradient_flow(task, beta0, Gamma0, [0.0, 0.1, 1.0, 10.0, 100.0, 300.0])
    assert (np.diff(flow.risk) < 1e-8).all()
    np.testing.assert_allclose(flow.risk[0], gd_beta_risk(task, beta0, Gamma0), rtol=1e-14)
    np.testing.assert_allclose(flow.risk[-1], least.risk, rtol=1e-6)
    np.testing.assert_allclose(flow.beta[-1], least.beta, atol=1e-3)


def test_near_the_minimum_the_flow_follows_its_hessian() -> None:
    """To first order the distance from the minimum is exp(-t Hessian) times the start's."""
    least, offset = gd_beta_minimum(TASK), 1e-5 * stream(0, "flow: offset").standard_normal(6)
    best = pack(least.beta, least.Gamma)
    beta0, Gamma0 = unpack(best + offset, 2)
    flow = gradient_flow(TASK, beta0, Gamma0, [0.5, 1.0])
    for time, beta, Gamma in zip(flow.times, flow.beta, flow.Gamma, strict=True):
        expected = expm(-time * hessian(TASK, best)) @ offset
        np.testing.assert_allclose(pack(beta, Gamma) - best, expected, atol=1e-9)


def test_small_steps_of_descent_follow_the_flow() -> None:
    """The distance between them at a fixed time halves with the step."""
    start = np.array([-1.0, 2.0]), np.array([[0.5, 0.3], [-0.2, 0.1]])
    flow = gradient_flow(TASK, *start, [1.0])
    distance = [
        np.abs(gradient_descent(TASK, *start, step=1 / n, steps=n).beta[-1] - flow.beta[-1]).max()
        for n in (400, 800)
    ]
    assert 1.9 < distance[0] / distance[1] < 2.1


def test_descent_is_stable_just_below_two_over_the_largest_eigenvalue_and_not_above() -> None:
    least = gd_beta_minimum(TASK)
    limit = 2 / np.linalg.eigvalsh(hessian(TASK, pack(least.beta, least.Gamma)))[-1]
    start = least.beta + 1e-4, least.Gamma + 1e-4
    steady = gradient_descent(TASK, *start, step=0.95 * limit, steps=400)
    assert steady.risk[-1] - least.risk < 1e-3 * (steady.risk[0] - least.risk)
    away = gradient_descent(TASK, *start, step=1.05 * limit, steps=40)
    assert away.risk[-1] - least.risk > 10 * (away.risk[0] - least.risk)


@pytest.mark.parametrize("step", [torch.tensor(2), np.array(2), np.int64(2), 2])
def test_a_step_that_passes_the_check_is_the_one_taken(step: float) -> None:
    task = replace(TASK, beta_star=np.zeros(2), Psi=0.01 * np.eye(2))
    path = gradient_descent(task, np.zeros(2), np.zeros((2, 2)), step=step, steps=1)
    gradient = gd_beta_gradient(task, np.zeros(2), np.zeros((2, 2)))[1]
    np.testing.assert_array_equal(path.Gamma[1], -2.0 * gradient)


@pytest.mark.parametrize("end", [5e-324, 1e-201, 1e-9])
def test_a_flow_of_hardly_any_time_does_not_hang(end: float) -> None:
    start = np.array([-1.0, 2.0]), np.array([[0.5, 0.3], [-0.2, 0.1]])
    flow = gradient_flow(TASK, *start, [0.0, end])
    velocity = -gd_beta_gradient(TASK, *start)[0]
    np.testing.assert_allclose(flow.beta[1], start[0] + end * velocity, rtol=1e-12)


def test_a_flow_of_no_time_is_its_start() -> None:
    start = np.array([-1.0, 2.0]), np.eye(2)
    flow = gradient_flow(TASK, *start, [0.0])
    np.testing.assert_allclose(flow.beta, start[:1], rtol=1e-15)
    np.testing.assert_allclose(flow.Gamma, start[1:], rtol=1e-15)


def test_a_diverging_descent_says_where() -> None:
    with pytest.raises(FloatingPointError, match=r"step 10\.0 diverged at step \d+"):
        gradient_descent(TASK, [5.0, 5.0], np.eye(2), step=10.0, steps=50)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([-1.0, 1.0], "times: got .* expected numbers that increase from at least 0"),
        ([0.0, 2.0, 1.0], "times: got .* expected numbers that increase"),
        ([0.0, 0.0], "times: got .* expected numbers that increase"),
        ([], "times: got shape"),
        ([np.nan], "times: got 1 entries"),
    ],
)
def test_bad_times_are_refused(times: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        gradient_flow(TASK, np.zeros(2), np.zeros((2, 2)), times)


def test_bad_starts_and_steps_are_refused() -> None:
    zero, square = np.zeros(2), np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"beta0: got shape \(3,\), expected \(2\)"):
        gradient_flow(TASK, np.zeros(3), square, [1.0])
    with pytest.raises(ValueError, match=r"Gamma0: got shape \(2,\), expected \(2, 2\)"):
        gradient_descent(TASK, zero, zero, step=0.1, steps=1)
    with pytest.raises(ValueError, match=r"step: got 0\.0, expected a positive step size"):
        gradient_descent(TASK, zero, square, step=0.0, steps=1)
    with pytest.raises(ValueError, match=r"Gamma: got 4 entries that are NaN or infinite"):
        gd_beta_hessian(TASK, zero, square * np.nan)
    with pytest.raises(ValueError, match=r"beta: got 2 entries that are NaN or infinite"):
        gd_beta_gradient(TASK, zero * np.nan, square)
    with pytest.raises(ValueError, match="steps: got 0, expected an integer of at least 1"):
        gradient_descent(TASK, zero, square, step=0.1, steps=0)
