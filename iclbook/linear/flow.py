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
from iclbook.linear.risk import gd_beta_risk, second_moment
from iclbook.linear.task import RegressionTask


@dataclass(frozen=True, eq=False)
class Flow:
    """A path in the parameters of GD-beta, and its exact risk, the floor sigma^2 included."""

    times: Array
    """Times (k,), or for gradient descent numbers of steps."""
    beta: Array
    """Starts beta along the path, (k, d)."""
    Gamma: Array
    """Matrix steps Gamma along the path, (k, d, d)."""
    risk: Array
    """Exact risks along the path, (k,)."""


def curvature_in_beta(task: RegressionTask, Gamma: ArrayLike) -> Array:
    """Q(Gamma) = E (I - Gamma S)^T H (I - Gamma S), (d, d): the risk's part in b is b^T Q b.

    For positive definite H it is positive definite for every Gamma, so that every stationary point
    of the risk has b = 0.

    Raises:
        ValueError: Gamma is not a finite float64 (d, d) array.

    Source: derived in this book (paper A, the proof that gradient flow converges, needs it).
    """
    Gamma = as_array("Gamma", Gamma, (task.d, task.d))
    H = task.H
    HGH = H @ Gamma @ H
    return H - HGH - HGH.T + second_moment(task, Gamma.T @ H @ Gamma, 0.0)


def gd_beta_gradient(
    task: RegressionTask, beta: ArrayLike, Gamma: ArrayLike
) -> tuple[Array, Array]:
    """Gradient of `gd_beta_risk` in beta, (d,), and in Gamma, (d, d).

    They are 2 Q b and 2 H (Gamma K - P H).

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book from the exact risk.
    """
    d, H = task.d, task.H
    b = as_array("beta", beta, (d,)) - task.beta_star
    Gamma = as_array("Gamma", Gamma, (d, d))
    P = task.Psi + np.outer(b, b)
    K = second_moment(task, P, task.sigma**2)
    return 2 * curvature_in_beta(task, Gamma) @ b, 2 * H @ (Gamma @ K - P @ H)


def gd_beta_hessian_product(
    task: RegressionTask,
    beta: ArrayLike,
    Gamma: ArrayLike,
    d_beta: ArrayLike,
    d_Gamma: ArrayLike,
) -> tuple[Array, Array]:
    """Hessian of `gd_beta_risk` at (beta, Gamma), applied to the direction (d_beta, d_Gamma).

    Returns:
        Its parts in beta, (d,), and in Gamma, (d, d): the derivative of the gradient.

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book from the exact risk.
    """
    d, H = task.d, task.H
    b = as_array("beta", beta, (d,)) - task.beta_star
    Gamma = as_array("Gamma", Gamma, (d, d))
    d_beta, d_Gamma = as_array("d_beta", d_beta, (d,)), as_array("d_Gamma", d_Gamma, (d, d))
    HGH = H @ d_Gamma @ H
    dA = d_Gamma.T @ H @ Gamma + Gamma.T @ H @ d_Gamma
    dQ = second_moment(task, dA, 0.0) - HGH - HGH.T
    P, dP = task.Psi + np.outer(b, b), np.outer(d_beta, b) + np.outer(b, d_beta)
    K, dK = second_moment(task, P, task.sigma**2), second_moment(task, dP, 0.0)
    in_beta = 2 * (curvature_in_beta(task, Gamma) @ d_beta + dQ @ b)
    return in_beta, 2 * H @ (d_Gamma @ K + Gamma @ dK - dP @ H)


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
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"times: got {times}, expected numbers that increase from at least 0")

    def velocity(_: float, state: Array) -> Array:
        g_beta, g_Gamma = gd_beta_gradient(task, state[:d], state[d:].reshape(d, d))
        return -np.concatenate([g_beta, g_Gamma.ravel()])

    start = np.concatenate([beta0, Gamma0.ravel()])
    if times[-1] == 0:
        path = start[None]
    else:
        solution = solve_ivp(
            velocity, (0.0, times[-1]), start, "LSODA", t_eval=times, rtol=1e-10, atol=1e-12
        )
        if not solution.success:
            raise ArithmeticError(f"the flow could not be integrated: {solution.message}")
        path = solution.y.T
    flow = _record(task, times, path)
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
    d, steps = task.d, as_count("steps", steps)
    beta, Gamma = as_array("beta0", beta0, (d,)), as_array("Gamma0", Gamma0, (d, d))
    as_positive("step", step, "step size")
    path = [np.concatenate([beta, Gamma.ravel()])]
    start = gd_beta_risk(task, beta, Gamma)
    for count in range(1, steps + 1):
        g_beta, g_Gamma = gd_beta_gradient(task, beta, Gamma)
        beta, Gamma = beta - step * g_beta, Gamma - step * g_Gamma
        # A quartic that has grown a million times does not come back.
        if gd_beta_risk(task, beta, Gamma) > 1e6 * (start + 1.0):
            raise FloatingPointError(f"gradient descent with step {step} diverged at step {count}")
        path.append(np.concatenate([beta, Gamma.ravel()]))
    return _record(task, np.arange(steps + 1, dtype=np.float64), np.array(path))


def _record(task: RegressionTask, times: Array, path: Array) -> Flow:
    d = task.d
    beta, Gamma = path[:, :d], path[:, d:].reshape(-1, d, d)
    risk = [gd_beta_risk(task, *point) for point in zip(beta, Gamma, strict=True)]
    return Flow(times=times, beta=beta, Gamma=Gamma, risk=np.array(risk))
