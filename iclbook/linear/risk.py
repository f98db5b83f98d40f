"""Exact risks of linear attention, the linear block and GD-beta, and their global minima.

Taught in the chapter linear/approximation-gap. With G the (d+1, d+1) moment matrix of a prompt,
a linear self-attention layer (LSA) predicts <W G v, x> and a linear Transformer block (LTB)
predicts <u + W G v, x>. Every risk is E (prediction - label)^2 in squared units of a label and
includes the floor sigma^2.

All moments are computed after the change of variables z = H^(-1/2) x, y' = y / L, where L is
the root mean square of a label: then H = I and every remaining quantity is of order 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

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
    d, M, H = task.d, task.M, task.H
    b = as_array("beta", beta, (d,)) - task.beta_star
    Gamma = as_array("Gamma", Gamma, (d, d))
    P = task.Psi + np.outer(b, b)
    HP = H @ P
    K = (M + 1) / M * HP @ H + (np.trace(HP) + task.sigma**2) / M * H
    return float(
        task.sigma**2
        + np.trace(HP)
        - 2 * np.trace(H @ Gamma @ HP)
        + np.trace(H @ Gamma @ K @ Gamma.T)
    )


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
    std = _standardise(task)
    u, v, W = std.root @ u / std.scale, std.token @ v, std.root @ W @ std.token / std.scale
    K, C, m = _moments(std, v[:-1] + v[-1] * std.b, v[-1])
    bias = u + W @ m - std.b
    spread = np.trace(std.Phi) - 2 * np.sum(W * C) + np.sum((W @ K) * W)
    return float(std.scale**2 * (std.sigma**2 + bias @ bias + spread))


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


# --- the task in standard units: z = H^(-1/2) x and y' = y / L -----------------------------------


@dataclass(frozen=True, eq=False)
class _Standard:
    """The task after whitening: beta' = H^(1/2) beta / L ~ N(b, Phi), noise sigma, H = I."""

    Phi: Array
    b: Array
    sigma: float
    M: int
    scale: float
    """L, the root mean square of a label, in units of a label."""
    root: Array
    """H^(1/2)."""
    inverse_root: Array
    """Pseudo-inverse of H^(1/2)."""

    @property
    def token(self) -> Array:
        """diag(H^(1/2), L): a token is this matrix times a token in standard units."""
        return _block_diagonal(self.root, self.scale)

    @property
    def inverse_token(self) -> Array:
        return _block_diagonal(self.inverse_root, 1 / self.scale)


def _standardise(task: RegressionTask) -> _Standard:
    root = task.root_H
    b, Phi = root @ task.beta_star, root @ task.Psi @ root
    scale = float(np.sqrt(np.trace(Phi) + b @ b + task.sigma**2))
    scale = scale or 1.0  # labels that are all 0 have no unit of their own
    return _Standard(
        Phi=Phi / scale**2,
        b=b / scale,
        sigma=task.sigma / scale,
        M=task.M,
        scale=scale,
        root=root,
        inverse_root=np.linalg.pinv(root, rcond=1e-8, hermitian=True),
    )


def _block_diagonal(A: Array, a: float) -> Array:
    d = len(A)
    block = np.zeros((d + 1, d + 1))
    block[:d, :d], block[d, d] = A, a
    return block


def _moments(std: _Standard, omega: Array, c: float) -> tuple[Array, Array, Array]:
    """Mean and covariances of G v, in standard units, for v = (omega - c b, c).

    Returns:
        K = Cov(G v), (d+1, d+1); C = Cov(beta, G v), (d, d+1); m = E G v, (d+1,).

    Given beta = b + delta, G is a Wishart matrix over M with mean Sigma(beta), and
    Sigma v = (omega + c delta, s0 + h^T delta + c |delta|^2 + c sigma^2) with h = c b + omega; the
    rest is fourth moments of the Gaussian delta (Isserlis). One class of terms carries 1/M.
    """
    Phi, b, s2, M = std.Phi, std.b, std.sigma**2, std.M
    d = len(b)
    t, t2 = np.trace(Phi), np.sum(Phi * Phi)
    tau, kappa = t + s2, (M + 1) / M
    h, Phi_h, Phi_omega = c * b + omega, Phi @ (c * b + omega), Phi @ omega
    mean_y = b @ omega + c * tau  # E of the last entry of Sigma v
    power = omega @ omega + c * c * tau  # E v^T Sigma v
    K = np.empty((d + 1, d + 1))
    K[:d, :d] = np.outer(omega, omega) / M + kappa * c * c * Phi + power / M * np.eye(d)
    K[:d, d] = K[d, :d] = (
        mean_y * omega / M + kappa * c * Phi_h + (power * b + 2 * c * Phi_omega) / M
    )
    K[d, d] = (
        mean_y**2 / M
        + kappa * (h @ Phi_h + 2 * c * c * t2)
        + power * (b @ b + s2) / M
        + ((omega @ omega + c * c * s2) * t + 4 * c * b @ Phi_omega + c * c * (t * t + 2 * t2)) / M
    )
    C = np.column_stack([c * Phi, Phi_h])
    return K, C, np.append(omega, mean_y)


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
    Phi, b, s2, a = std.Phi, std.b, std.sigma**2, 1 / std.M
    t, t2, kappa = np.trace(Phi), np.sum(Phi * Phi), 1 + 1 / std.M
    tau, bb = t + s2, b @ b
    h, Phi_b, Phi_omega = c * b + omega, Phi @ b, Phi @ omega
    Phi_h = Phi @ h
    mean_y = b @ omega + c * tau
    Wx, wy = W[:, :-1], W[:, -1]
    Bxx, bxy, byy = Wx.T @ Wx, Wx.T @ wy, wy @ wy
    trace_B, Phi_bxy = np.trace(Bxx), Phi @ bxy
    # d/d omega and d/dc of <W^T W, K> - 2 <W, C>, block by block: xx, xy (twice), yy, C.
    g_omega = (
        2 * a * (Bxx @ omega + trace_B * omega)
        + 2 * a * (mean_y * bxy + (bxy @ omega) * b + 2 * (bxy @ b) * omega + 2 * c * Phi_bxy)
        + 2 * kappa * c * Phi_bxy
        + byy * (2 * kappa * Phi_h)
        + byy * a * (2 * mean_y * b + 2 * (bb + s2 + t) * omega + 4 * c * Phi_b)
        - 2 * Phi @ wy
    )
    g_c = (
        2 * kappa * c * np.sum(Bxx * Phi)
        + 2 * a * c * tau * trace_B
        + 2 * kappa * bxy @ (Phi_h + c * Phi_b)
        + 2 * a * (tau * (bxy @ omega) + 2 * c * tau * (bxy @ b) + 2 * bxy @ Phi_omega)
        + byy * kappa * (2 * h @ Phi_b + 4 * c * t2)
        + byy * a * (2 * mean_y * tau + 2 * c * tau * (bb + s2) + 2 * c * s2 * t)
        + byy * a * (4 * b @ Phi_omega + 2 * c * (t * t + 2 * t2))
        - 2 * (np.sum(Phi * Wx) + wy @ Phi_b)
    )
    if not free_u:  # the squared bias |W m - b|^2, which a free u would cancel
        pull = 2 * W.T @ (W @ np.append(omega, mean_y) - b)
        g_omega = g_omega + pull[:-1] + pull[-1] * b
        g_c = g_c + pull[-1] * tau
    return value, np.append(g_omega, g_c)


_ANGLES = 48  # starts on each half circle


def _starts(std: _Standard) -> list[Array]:
    """Points (omega, c) from which a minimisation starts: the local minima along half circles.

    The circles turn c's axis towards b, Phi b, Phi^2 b and each eigenvector of Phi; for H = I and
    Psi = psi I the first of them holds every stationary point.
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


def _minimum(task: RegressionTask, free_u: bool) -> tuple[float, Array, Array, Array]:
    """(risk, u, v, W) at the global minimum; v's last entry is 1 unless it is 0."""
    d, std = task.d, _standardise(task)
    starts = _starts(std)
    heights = np.array([_profile(std, s[:-1], s[-1], free_u)[0] for s in starts])
    heights = heights.reshape(-1, _ANGLES)
    low = (heights <= np.roll(heights, 1, axis=1)) & (heights <= np.roll(heights, -1, axis=1))
    chosen = sorted(np.flatnonzero(low), key=lambda k: heights.flat[k])[:12]
    ends = [
        minimize(
            _profile_and_gradient,
            starts[k],
            args=(std, free_u),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 0.0, "gtol": 1e-13, "maxiter": 2000},
        )
        for k in chosen
    ]
    # d = 1 has a second minimiser, v and W swapped; of equal ends take the one that reads the labels.
    least = min(end.fun for end in ends)
    best = max(
        (end.x for end in ends if end.fun <= least + 1e-12),
        key=lambda point: abs(point[-1]) / np.linalg.norm(point),
    )
    omega, c = best[:-1], best[-1]
    value, W = _profile(std, omega, c, free_u)
    u = std.b - W @ _moments(std, omega, c)[2] if free_u else np.zeros(d)
    back = std.inverse_token
    v = back @ np.append(omega - c * std.b, c)
    W = std.scale * std.inverse_root @ W @ back
    unit = v[-1] if abs(v[-1]) > 1e-9 * np.linalg.norm(v) else np.linalg.norm(v)
    return (
        std.scale**2 * (std.sigma**2 + value),
        std.scale * std.inverse_root @ u,
        v / unit,
        W * unit,
    )


def _solve_psd(K: Array, C: Array) -> Array:
    """C K^+ for positive semi-definite K, scaled to unit diagonal before its rank is judged."""
    size = np.sqrt(np.diag(K))
    size = np.where(size > 0, size, 1.0)
    inverse = np.linalg.pinv(K / np.outer(size, size), rcond=1e-13, hermitian=True)
    return (C / size) @ inverse / size
