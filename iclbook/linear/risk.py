"""Exact risks of linear attention, the linear block and GD-beta, and their global minima.

Taught in the chapter linear/approximation-gap. With G the (d+1, d+1) moment matrix of a prompt,
a linear self-attention layer (LSA) predicts <W G v, x> and a linear Transformer block (LTB)
predicts <u + W G v, x>. Every risk is E (prediction - label)^2 in squared units of a label and
includes the floor sigma^2.

All moments are computed after the change of variables x = R z, y = <beta_star, x> + L y', where
H = R R^T and L is a unit of labels. Tokens change linearly, so W, v and u absorb it. Then H = I,
the task vector is a centred Gaussian, and beta_star is left in one place only: an LSA layer, whose
u is 0, has u = -R^T beta_star / L in these variables.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.optimize import OptimizeResult, minimize

from iclbook.checks import Array, as_array
from iclbook.linear.task import RegressionTask


@dataclass(frozen=True, eq=False)
class GDBetaMinimum:
    """The minimum over all GD-beta estimators: its risk, start beta (d,) and step Gamma (d, d)."""

    risk: float
    beta: Array
    Gamma: Array


@dataclass(frozen=True, eq=False)
class LSAMinimum:
    """The minimum over all LSA layers: its risk and one minimiser, v (d+1,) and W (d, d+1)."""

    risk: float
    v: Array
    W: Array


@dataclass(frozen=True, eq=False)
class LTBMinimum:
    """The minimum over all LTB layers: its risk and one minimiser, u (d,), v (d+1,), W (d, d+1)."""

    risk: float
    u: Array
    v: Array
    W: Array


def gd_beta_risk(task: RegressionTask, beta: ArrayLike, Gamma: ArrayLike) -> float:
    """Exact risk of one gradient step from `beta` (d,) with matrix step `Gamma` (d, d).

    With b = beta - beta_star, P = Psi + b b^T and
    K = (M+1)/M H P H + (tr(H P) + sigma^2)/M H, it is
    sigma^2 + tr(H P) - 2 tr(H Gamma H P) + tr(H Gamma K Gamma^T).

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book (the class GD-beta is paper A's).
    """
    d, H = task.d, task.H
    b = as_array("beta", beta, (d,)) - task.beta_star
    Gamma = as_array("Gamma", Gamma, (d, d))
    P = task.Psi + np.outer(b, b)
    HP = H @ P
    K = second_moment(task, P, task.sigma**2)
    return float(
        task.sigma**2
        + np.trace(HP)
        - 2 * np.trace(H @ Gamma @ HP)
        + np.trace(H @ Gamma @ K @ Gamma.T)
    )


def second_moment(task: RegressionTask, P: Array, noise: float) -> Array:
    """(M+1)/M H P H + (tr(H P) + noise)/M H, (d, d), for any symmetric P (d, d).

    With P the second moment of what is left of the task and noise = sigma^2 it is K, the second
    moment of X^T y / M.

    Source: derived in this book, by Isserlis' theorem.
    """
    HP = task.H @ P
    return (task.M + 1) / task.M * HP @ task.H + (np.trace(HP) + noise) / task.M * task.H


def gd_beta_minimum(task: RegressionTask) -> GDBetaMinimum:
    """The best GD-beta estimator, in closed form.

    beta = beta_star, Gamma = ((M+1)/M Psi H + tau/M I)^-1 Psi, and, with phi_i the eigenvalues of
    H^(1/2) Psi H^(1/2), the risk sigma^2 + sum_i phi_i (phi_i + tau) / ((M+1) phi_i + tau). If
    tau = 0 the labels are <beta_star, x> exactly and Gamma = 0 is returned.

    Source: paper A for beta and the form of Gamma; the exact moments are derived in this book.
    """
    phi, tau, M, d = task.phi, task.tau, task.M, task.d
    if tau == 0:
        return GDBetaMinimum(0.0, np.array(task.beta_star), np.zeros((d, d)))
    Gamma = np.linalg.solve((M + 1) / M * task.Psi @ task.H + tau / M * np.eye(d), task.Psi)
    excess = float(np.sum(phi * (phi + tau) / ((M + 1) * phi + tau)))
    return GDBetaMinimum(task.sigma**2 + excess, np.array(task.beta_star), Gamma)


def lsa_risk(task: RegressionTask, v: ArrayLike, W: ArrayLike) -> float:
    """Exact risk of the LSA layer that predicts <W G v, x>, for any v (d+1,) and W (d, d+1).

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book; the hypothesis class is paper A's.
    """
    return ltb_risk(task, np.zeros(task.d), v, W)


def ltb_risk(task: RegressionTask, u: ArrayLike, v: ArrayLike, W: ArrayLike) -> float:
    """Exact risk of the LTB layer that predicts <u + W G v, x>.

    Args:
        task: the distribution of prompts.
        u: what the MLP adds for the query's own x, (d,).
        v: the row that the value path applies to the tokens, (d+1,).
        W: the key-query block, (d, d+1).

    Raises:
        ValueError: shapes that do not fit the task, NaN, wrong dtype.

    Source: derived in this book; the hypothesis class is paper A's.
    """
    d = task.d
    u = as_array("u", u, (d,))
    v = as_array("v", v, (d + 1,))
    W = as_array("W", W, (d, d + 1))
    R, beta = _factor(task), task.beta_star
    std = _standardise(task, R, 1.0)
    # G = T G' T^T with the tokens' change T = [[R, 0], [beta_star^T R, 1]].
    W = R.T @ np.column_stack([(W[:, :d] + np.outer(W[:, d], beta)) @ R, W[:, d]])
    K, C, m = _moments(std, R.T @ (v[:d] + v[d] * beta), v[d])
    bias = R.T @ (u - beta) + W @ m
    spread = np.trace(std.Phi) - 2 * np.sum(W * C) + np.sum((W @ K) * W)
    return float(std.noise + bias @ bias + spread)


def lsa_minimum(task: RegressionTask) -> LSAMinimum:
    """The global minimum of the risk over all LSA layers.

    For fixed v the best W solves a linear system; what is left is a minimisation over the
    direction of v, which can have several local minima, and is started from many places.

    Source: derived in this book (paper A bounds this minimum from below).
    """
    risk, _, v, W = _minimum(task, free_u=False)
    return LSAMinimum(risk, v, W)


def ltb_minimum(task: RegressionTask) -> LTBMinimum:
    """The global minimum of the risk over all LTB layers, found without using that it is GD-beta's.

    Source: derived in this book; paper A proves that it equals the minimum over GD-beta.
    """
    return LTBMinimum(*_minimum(task, free_u=True))


# --- the task in standard units: x = R z and y = <beta_star, x> + L y' ----------------------------


@dataclass(frozen=True, eq=False)
class _Standard:
    """The task after whitening and centring: delta = R^T (beta - beta_star) / L ~ N(0, Phi)."""

    Phi: Array
    b: Array
    """R^T beta_star / L."""
    noise: float
    """sigma^2 / L^2."""
    M: int


def _factor(task: RegressionTask) -> Array:
    """R with H = R R^T and orthogonal columns, (d, rank of H), of one column if H = 0.

    A square root of size (d, d) would not do: it whitens x to a z with directions that no prompt
    has, and a layer that could see them would have a lower risk.
    """
    vectors, sizes, _ = np.linalg.svd(task.root_H)
    rank = max(1, int(np.sum(sizes > 1e-8 * sizes[0])))
    return vectors[:, :rank] * sizes[:rank]


def _standardise(task: RegressionTask, R: Array, unit: float) -> _Standard:
    """The task with L = `unit`."""
    root = R.T @ task.root_Psi / unit
    return _Standard(
        Phi=root @ root.T,
        b=R.T @ task.beta_star / unit,
        noise=(task.sigma / unit) ** 2,
        M=task.M,
    )


def _moments(std: _Standard, omega: Array, c: float) -> tuple[Array, Array, Array]:
    """Mean and covariances of G v, in standard units, for v = (omega, c).

    Returns:
        K = Cov(G v), (d+1, d+1); C = Cov(delta, G v), (d, d+1); m = E G v, (d+1,), where d is
        the dimension of z.

    Given delta, M G is a Wishart matrix with M degrees of freedom and mean M Sigma(delta), and
    Sigma v = (omega + c delta, omega^T delta + c |delta|^2 + c noise); the rest is fourth moments
    of the Gaussian delta (Isserlis).
    """
    Phi, M = std.Phi, std.M
    d, t2 = len(Phi), np.sum(Phi * Phi)
    tau = np.trace(Phi) + std.noise
    Phi_omega, power = Phi @ omega, omega @ omega
    K = np.empty((d + 1, d + 1))
    K[:d, :d] = (
        np.outer(omega, omega) + (M + 1) * c * c * Phi + (power + c * c * tau) * np.eye(d)
    ) / M
    K[:d, d] = K[d, :d] = c * (tau * omega + (M + 3) * Phi_omega) / M
    K[d, d] = (
        tau * (power + 2 * c * c * tau) + (M + 1) * omega @ Phi_omega + 2 * (M + 2) * c * c * t2
    ) / M
    return K, np.column_stack([c * Phi, Phi_omega]), np.append(omega, c * tau)


# --- minimisation over the direction of v ---------------------------------------------------------


def _profile(std: _Standard, omega: Array, c: float, free_u: bool) -> tuple[float, Array]:
    """Risk minimised over W (and over u if it is free), without sigma^2, and the minimiser W."""
    K, C, m = _moments(std, omega, c)
    least = np.trace(std.Phi)
    if not free_u:
        K, C, least = K + np.outer(m, m), C + np.outer(std.b, m), least + std.b @ std.b
    W = _solve_psd(K, C)
    return float(least - np.sum(W * C)), W


def _profile_and_gradient(point: Array, std: _Standard, free_u: bool) -> tuple[float, Array]:
    """The profile at point = (omega, c) and its gradient, (d+1,): W and u stay at their optimum."""
    omega, c = point[:-1], point[-1]
    value, W = _profile(std, omega, c, free_u)
    Phi, M = std.Phi, std.M
    t2, tau = np.sum(Phi * Phi), np.trace(Phi) + std.noise
    Phi_omega = Phi @ omega
    Wx, wy = W[:, :-1], W[:, -1]
    Bxx, bxy, byy = Wx.T @ Wx, Wx.T @ wy, wy @ wy
    cross = tau * bxy + (M + 3) * Phi @ bxy
    # d/d omega and d/dc of <W^T W, K> - 2 <W, C>: the blocks xx, xy (twice) and yy of K, then C.
    g_omega = (
        2 * (Bxx @ omega + np.trace(Bxx) * omega)
        + 2 * c * cross
        + 2 * byy * (tau * omega + (M + 1) * Phi_omega)
    ) / M - 2 * Phi @ wy
    g_c = (
        2 * c * ((M + 1) * np.sum(Bxx * Phi) + tau * np.trace(Bxx))
        + 2 * omega @ cross
        + 4 * byy * c * (tau**2 + (M + 2) * t2)
    ) / M - 2 * np.sum(Phi * Wx)
    if not free_u:  # the squared bias |W m - b|^2, which a free u would cancel
        pull = 2 * W.T @ (W @ np.append(omega, c * tau) - std.b)
        g_omega, g_c = g_omega + pull[:-1], g_c + pull[-1] * tau
    return value, np.append(g_omega, g_c)


_ANGLES = 24  # starts on each half circle


def _starts(std: _Standard) -> list[Array]:
    """Points (omega, c) from which a minimisation starts: the local minima along half circles.

    The circles turn c's axis towards b, Phi b, Phi^2 b and each eigenvector of Phi. For H = I and
    Psi = psi I, every minimum that searches from random points found lay on the first of them.
    """
    directions = [
        std.b,
        std.Phi @ std.b,
        std.Phi @ (std.Phi @ std.b),
        *np.linalg.eigh(std.Phi)[1].T,
    ]
    units = [e / np.linalg.norm(e) for e in directions if np.linalg.norm(e) > 1e-12]
    # Half a step off the axes: the axis omega = 0 is where paper A says that the LTB's minimum is,
    # and a search that starts there would confirm nothing.
    angles = (np.arange(_ANGLES) + 0.5) * np.pi / _ANGLES - np.pi / 2
    return [np.append(np.sin(t) * e, np.cos(t)) for e in units for t in angles]


def _descend(start: Array, std: _Standard, free_u: bool, tolerance: float) -> OptimizeResult:
    """Walk downhill on the profile from `start` until no gradient entry exceeds `tolerance`."""
    return minimize(
        _profile_and_gradient,
        start,
        args=(std, free_u),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": tolerance, "maxiter": 2000},
    )


def _minimum(task: RegressionTask, free_u: bool) -> tuple[float, Array, Array, Array]:
    """(risk, u, v, W) at the global minimum; v's last entry is 1 unless it is 0."""
    # The unit makes the value to be minimised of order 1; labels that are all 0 have no unit.
    R, beta = _factor(task), task.beta_star
    signal = 0.0 if free_u else float(np.sum((R.T @ beta) ** 2))
    unit = float(np.sqrt(task.tau + signal)) or 1.0
    std = _standardise(task, R, unit)
    starts = _starts(std)
    heights = np.array([_profile(std, s[:-1], s[-1], free_u)[0] for s in starts])
    heights = heights.reshape(-1, _ANGLES)
    low = (heights <= np.roll(heights, 1, axis=1)) & (heights <= np.roll(heights, -1, axis=1))
    chosen = sorted(np.flatnonzero(low), key=lambda k: heights.flat[k])[:12]
    rough = [_descend(starts[k], std, free_u, tolerance=1e-6) for k in chosen]
    near = min(end.fun for end in rough) + 1e-3
    ends = [_descend(end.x, std, free_u, tolerance=1e-13) for end in rough if end.fun <= near]
    # d = 1 has a second minimiser, v and W swapped; of equal ends take the one that reads labels.
    least = min(end.fun for end in ends)
    best = max(
        (end.x for end in ends if end.fun <= least + 1e-12),
        key=lambda point: abs(point[-1]) / np.linalg.norm(point),
    )
    omega, c = best[:-1], best[-1]
    value, W = _profile(std, omega, c, free_u)
    # Back to the task's own units. Where H is singular, v and W are free; `back` leaves them at 0
    # there, but for what undoes the centring.
    back = np.linalg.pinv(R).T
    u = beta - unit * back @ W @ _moments(std, omega, c)[2] if free_u else np.zeros(task.d)
    c /= unit
    v = np.append(back @ omega - c * beta, c)
    W = back @ W
    W = np.column_stack([unit * W[:, :-1] @ back.T - np.outer(W[:, -1], beta), W[:, -1]])
    norm = v[-1] if abs(v[-1]) > 1e-9 * np.linalg.norm(v) else np.linalg.norm(v)
    return unit**2 * (std.noise + value), u, v / norm, W * norm


def _solve_psd(K: Array, C: Array) -> Array:
    """C K^+ for positive semi-definite K, scaled to unit diagonal before its rank is judged."""
    size = np.sqrt(np.diag(K))
    size = np.where(size > 0, size, 1.0)
    scaled = K / np.outer(size, size)
    root, failed = dpotrf(scaled, lower=True)
    if not failed and np.diag(root).min() > 3e-7:  # far from singular: no need of the spectrum
        return dpotrs(root, (C / size).T, lower=True)[0].T / size
    return (C / size) @ np.linalg.pinv(scaled, rcond=1e-13, hermitian=True) / size
