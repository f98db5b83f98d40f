"""Gradient flow and gradient descent on the exact risk of GD-beta.

The risk R(beta, Gamma) of `gd_beta_risk` is not convex. With b = beta - beta_star,
P = Psi + b b^T, K = (M+1)/M H P H + (tr(H P) + sigma^2)/M H and A = Gamma^T H Gamma its part in b
is b^T Q b with Q = H - H Gamma H - H Gamma^T H + (M+1)/M H A H + tr(A H)/M H.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from iclbook.checks import Array, as_array, as_count, as_positive
from iclbook.linear.risk import gd_beta_risk, second_moment, slope_of_polynomial
from iclbook.linear.task import RegressionTask


@dataclass(frozen=True, eq=False)
class Flow:
    """A path in the parameters of GD-beta, and its exact risk, the floor sigma^2 included.

    Attributes:
        times: Times (k,), or for gradient descent numbers of steps.
        beta: Starts beta along the path, (k, d).
        Gamma: Matrix steps Gamma along the path, (k, d, d).
        risk: Exact risks along the path, (k,).
    """

    times: Array
    beta: Array
    Gamma: Array
    risk: Array


def curvature_in_beta(task: RegressionTask, Gamma: ArrayLike) -> Array:
    """Q(Gamma) = E (I - Gamma S)^T H (I - Gamma S), (d, d): the risk's part in b is b^T Q b.

    For positive definite H it is positive definite for every Gamma, so that every stationary point
    of the risk has b = 0.

    Raises:
        ValueError: Gamma is not a finite float64 (d, d) array.

    Source: derived in this book (paper A, the proof that gradient flow converges, needs it).
    """
    return _curvature(task, as_array("Gamma", Gamma, (task.d, task.d)))


def gd_beta_gradient(
    task: RegressionTask, beta: ArrayLike, Gamma: ArrayLike
) -> tuple[Array, Array]:
    """Gradient of `gd_beta_risk` in beta, (d,), and in Gamma, (d, d).

    They are 2 Q b and 2 H (Gamma K - P H).

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book from the exact risk.
    """
    beta, Gamma = as_array("beta", beta, (task.d,)), as_array("Gamma", Gamma, (task.d, task.d))
    return _gradient(task, beta, Gamma)


def gd_beta_hessian(task: RegressionTask, beta: ArrayLike, Gamma: ArrayLike) -> Array:
    """Hessian of `gd_beta_risk` in the d + d^2 numbers of beta, then Gamma row by row.

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book from the exact risk.
    """
    d = task.d
    beta, Gamma = as_array("beta", beta, (d,)), as_array("Gamma", Gamma, (d, d))

    def gradients(points: Array) -> Array:  # (k, d + d^2) -> (k, d + d^2)
        pairs = [_gradient(task, point[:d], point[d:].reshape(d, d)) for point in points]
        return np.array([np.append(*pair) for pair in pairs])

    return slope_of_polynomial(gradients, np.append(beta, Gamma))


def _curvature(task: RegressionTask, Gamma: Array) -> Array:
    H = task.H
    HGH = H @ Gamma @ H
    return H - HGH - HGH.T + second_moment(task, Gamma.T @ H @ Gamma, 0.0)


def _gradient(task: RegressionTask, beta: Array, Gamma: Array) -> tuple[Array, Array]:
    b = beta - task.beta_star
    P = task.Psi + np.outer(b, b)
    K = second_moment(task, P, task.sigma**2)
    return 2 * _curvature(task, Gamma) @ b, 2 * task.H @ (Gamma @ K - P @ task.H)


def gradient_flow(
    task: RegressionTask, beta0: ArrayLike, Gamma0: ArrayLike, times: ArrayLike
) -> Flow:
    """Solve d(beta, Gamma)/dt = -grad R from (beta0, Gamma0) at t = 0.

    Args:
        task: the distribution of prompts.
        beta0: start of the flow in beta, (d,).
        Gamma0: start of the flow in Gamma, (d, d), any matrix.
        times: when the flow is recorded, (k,): not negative, increasing.

    Raises:
        ValueError: starts that do not fit the task; times that are negative or not increasing.
        ArithmeticError: the integration failed, or the risk rose by more than its tolerance.

    Source: paper A, gradient flow on the risk of GD-beta; integrated by SciPy's LSODA.
    """
    d = task.d
    beta0, Gamma0 = as_array("beta0", beta0, (d,)), as_array("Gamma0", Gamma0, (d, d))
    times = as_array("times", times, (None,))
    end = times[-1] or 1.0
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"times: got {times}, expected numbers that increase from at least 0")

    def velocity(_: float, state: Array) -> Array:
        return -end * np.append(*_gradient(task, state[:d], state[d:].reshape(d, d)))

    # In units of the last time: the solver cannot choose a step for one of 1e-201.
    start, grid = np.append(beta0, Gamma0), times / end
    path = solve_ivp(velocity, (0.0, 1.0), start, "LSODA", grid, rtol=1e-10, atol=1e-12)
    if not path.success:
        raise ArithmeticError(f"the flow could not be integrated: {path.message}")
    flow = _record(task, times, path.y.T)
    rise = np.diff(flow.risk).max(initial=0.0)
    if rise > 1e-8 * flow.risk[0]:
        raise ArithmeticError(f"the risk rose by {rise:.3g} along the flow: it was not resolved")
    return flow


def gradient_descent(
    task: RegressionTask, beta0: ArrayLike, Gamma0: ArrayLike, *, step: float, steps: int
) -> Flow:
    """Take `steps` steps (beta, Gamma) - step grad R from (beta0, Gamma0); all are recorded.

    Args:
        task: the distribution of prompts.
        beta0: start in beta, (d,).
        Gamma0: start in Gamma, (d, d), any matrix.
        step: step size, positive; small against 2 over the Hessian's largest eigenvalue.
        steps: number of steps, at least 1.

    Raises:
        ValueError: starts that do not fit the task, step not positive, steps < 1.
        FloatingPointError: the iteration diverged; says at which step.

    Source: the discrete counterpart of paper A's gradient flow.
    """
    d, steps, step = task.d, as_count("steps", steps), as_positive("step", step, "step size")
    beta, Gamma = as_array("beta0", beta0, (d,)), as_array("Gamma0", Gamma0, (d, d))
    path = [np.append(beta, Gamma)]
    start = gd_beta_risk(task, beta, Gamma)
    for count in range(1, steps + 1):
        g_beta, g_Gamma = _gradient(task, beta, Gamma)
        beta, Gamma = beta - step * g_beta, Gamma - step * g_Gamma
        # A quartic that has grown a million times does not come back.
        if gd_beta_risk(task, beta, Gamma) > 1e6 * (start + 1.0):
            raise FloatingPointError(f"gradient descent with step {step} diverged at step {count}")
        path.append(np.append(beta, Gamma))
    return _record(task, np.arange(steps + 1, dtype=np.float64), np.array(path))


def _record(task: RegressionTask, times: Array, path: Array) -> Flow:
    d = task.d
    beta, Gamma = path[:, :d], path[:, d:].reshape(-1, d, d)
    risk = [gd_beta_risk(task, *point) for point in zip(beta, Gamma, strict=True)]
    return Flow(times=times, beta=beta, Gamma=Gamma, risk=np.array(risk))
