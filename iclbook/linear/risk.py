"""Exact risks of linear attention, the linear block and GD-beta, and their global minima.

Taught in the chapter linear/approximation-gap. With G the (d+1, d+1) moment matrix of a prompt,
a linear self-attention layer (LSA) predicts <W G v, x> and a linear Transformer block (LTB)
predicts <u + W G v, x>. Every risk is E (prediction - label)^2 in squared units of a label and
includes the floor sigma^2.

All moments are computed in standard units, x = R z and y = <beta_star, x> + y', where H = R R^T.
Tokens change linearly, so W, v and u absorb it. Then H = I, the task vector is a centred Gaussian,
and beta_star is left in one place only: an LSA layer, whose u is 0, has u = -R^T beta_star in these
units. There vectors are columns and numbers are (1, 1) matrices, so that tasks and layers stack
along leading axes, (..., 1, 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.optimize import OptimizeResult, minimize

from iclbook.checks import Array, as_array
from iclbook.linear.task import RegressionTask

Form = tuple[Array, Array, Array]  # a layer's u, v and W, or slopes in them


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
class LTBMinimum(LSAMinimum):
    """The minimum over all LTB layers: its risk and one minimiser, v, W and u (d,)."""

    u: Array


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
    fit = np.trace(H @ Gamma @ K @ Gamma.T) - 2 * np.trace(H @ Gamma @ HP)
    return float(task.sigma**2 + np.trace(HP) + fit)


def second_moment(task: RegressionTask, P: Array, noise: float) -> Array:
    """(M+1)/M H P H + (tr(H P) + noise)/M H, (d, d), for any symmetric P (d, d).

    With P the second moment of what is left of the task and noise = sigma^2 it is K, the second
    moment of X^T y / M.

    Source: derived in this book, by Isserlis' theorem.
    """
    HP = task.H @ P
    return np.asarray((task.M + 1) * HP @ task.H + (np.trace(HP) + noise) * task.H) / task.M


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
    noisy = (M + 1) / M * task.Psi @ task.H + tau / M * np.eye(d)
    Gamma = np.asarray(np.linalg.solve(noisy, task.Psi), np.float64)
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
    return float(exact_slopes(standardise(task), *_columns(task, u, v, W))[0])


def ltb_gradient(task: RegressionTask, u: ArrayLike, v: ArrayLike, W: ArrayLike) -> Form:
    """Gradient of `ltb_risk` in u (d,), v (d+1,) and W (d, d+1); arguments and errors are its own.

    Source: derived in this book.
    """
    g_u, g_v, g_W = exact_slopes(standardise(task), *_columns(task, u, v, W))[1]
    return g_u[:, 0], g_v[:, 0], g_W


def ltb_hessian(task: RegressionTask, u: ArrayLike, v: ArrayLike, W: ArrayLike) -> Array:
    """Hessian of `ltb_risk`, (N, N), in the N = d + (d+1) + d(d+1) numbers of (u, v, W).

    Their order is u, v, then W row by row. One eigenvalue at a minimum is 0: a factor can move
    between v and W. Arguments and errors are those of `ltb_risk`.

    Source: derived in this book.
    """
    std, form = standardise(task), _columns(task, u, v, W)
    shapes = [part.shape for part in form]
    ends = np.cumsum([part.size for part in form])[:-1]

    def gradients(points: Array) -> Array:  # (k, N) -> (k, N)
        parts = zip(np.split(points, ends, axis=1), shapes, strict=True)
        slopes = exact_slopes(std, *(part.reshape(-1, *shape) for part, shape in parts))[1]
        return np.concatenate([slope.reshape(len(points), -1) for slope in slopes], axis=1)

    return slope_of_polynomial(gradients, np.concatenate([part.ravel() for part in form]))


def slope_of_polynomial(gradients: Callable[[Array], Array], point: Array) -> Array:
    """The derivative (N, N) at `point` (N,) of gradients (k, N) -> (k, N), polynomials of points.

    A step of 1e-30 along the imaginary axis: the imaginary part is the derivative, and nothing is
    subtracted that could cancel.
    """
    step = 1e-30
    ahead: Array = gradients(point + 1j * step * np.eye(len(point))).imag / step
    return (ahead + ahead.T) / 2


def lsa_minimum(task: RegressionTask) -> LSAMinimum:
    """The global minimum of the risk over all LSA layers.

    For fixed v the best W solves a linear system; what is left is a minimisation over the
    direction of v, which can have several local minima, and is started from many places.

    Source: derived in this book (paper A bounds this minimum from below).
    """
    return LSAMinimum(*_minimum(task, free_u=False)[:3])


def ltb_minimum(task: RegressionTask) -> LTBMinimum:
    """The global minimum of the risk over all LTB layers, found without using that it is GD-beta's.

    Source: derived in this book; paper A proves that it equals the minimum over GD-beta.
    """
    return LTBMinimum(*_minimum(task, free_u=True))


# --- the task in standard units: x = R z and y = <beta_star, x> + y' ------------------------------


class Standard(NamedTuple):
    """A task after whitening and centring, or several along leading axes; r is the size of z.

    Attributes:
        R: H = R R^T, (..., d, r).
        T: What it does to tokens, (x, y) = T (z, y'), (..., d+1, r+1).
        beta: beta_star, (..., d, 1).
        Phi: Covariance of R^T (beta - beta_star), (..., r, r).
        noise: sigma^2, (..., 1, 1), as are the rest.
        tau: tr Phi + sigma^2.
        t2: tr Phi^2.
    """

    R: Array
    T: Array
    beta: Array
    Phi: Array
    noise: Array
    tau: Array
    t2: Array
    M: Array


def standardise(task: RegressionTask, R: Array | None = None) -> Standard:
    """The task with R (d, r), the symmetric root of H if it is not given."""
    R = task.root_H if R is None else R
    beta, one = task.beta_star[:, None], np.ones((1, 1))
    T = np.block([[R, np.zeros((task.d, 1))], [beta.T @ R, one]])
    root = R.T @ task.root_Psi
    Phi = root @ root.T
    noise = task.sigma**2 * one
    return Standard(R, T, beta, Phi, noise, np.trace(Phi) + noise, _dot(Phi, Phi), task.M * one)


def to_standard(std: Standard, u: Array, v: Array, W: Array) -> Form:
    """A layer's u (..., d, 1), v (..., d+1, 1) and W (..., d, d+1) in standard units."""
    return std.R.mT @ (u - std.beta), std.T.mT @ v, std.R.mT @ W @ std.T


def from_standard(std: Standard, g_u: Array, g_v: Array, g_W: Array) -> Form:
    """Slopes in the layer's own u, v and W, from those in standard units."""
    return std.R @ g_u, std.T @ g_v, std.R @ g_W @ std.T.mT


def exact_slopes(std: Standard, u: Array, v: Array, W: Array) -> tuple[Array, Form]:
    """Exact risk (...), sigma^2 included, and its slopes in u, v and W, in the layer's own units.

    Args:
        std: a task, or one for each layer.
        u: (..., d, 1).
        v: (..., d+1, 1).
        W: (..., d, d+1).

    Source: derived in this book.
    """
    u, v, W = to_standard(std, u, v, W)
    K, C, m = _moments(std, v)
    bias, WK = u + W @ m, W @ K  # (..., r, 1), (..., r, r+1)
    risk = std.tau + _dot(bias, bias) + _dot(W, WK - 2 * C)
    slopes = 2 * bias, _slope_in_v(std, v, W, bias), 2 * (bias @ m.mT + WK - C)
    return risk[..., 0, 0], from_standard(std, *slopes)


def _columns(task: RegressionTask, u: ArrayLike, v: ArrayLike, W: ArrayLike) -> Form:
    """The arguments of `exact_slopes`, checked."""
    d = task.d
    u, v = as_array("u", u, (d,))[:, None], as_array("v", v, (d + 1,))[:, None]
    return u, v, as_array("W", W, (d, d + 1))


def _factor(task: RegressionTask) -> Array:
    """R with H = R R^T and orthogonal columns, (d, rank of H), of one column if H = 0.

    A square root of size (d, d) would not do: it whitens x to a z with directions that no prompt
    has, and a layer that could see them would have a lower risk.
    """
    vectors, sizes, _ = np.linalg.svd(task.root_H)
    rank = max(1, int(np.sum(sizes > 1e-8 * sizes[0])))
    return np.asarray(vectors[:, :rank] * sizes[:rank])


def _moments(std: Standard, v: Array) -> tuple[Array, Array, Array]:
    """Mean and covariances of G v, in standard units, for v = (omega, c), (..., d+1, 1).

    Returns:
        K = Cov(G v), (..., d+1, d+1); C = Cov(delta, G v), (..., d, d+1); m = E G v, (..., d+1, 1),
        where d is the dimension of z.

    Given delta, M G is a Wishart matrix with M degrees of freedom and mean M Sigma(delta), and
    Sigma v = (omega + c delta, omega^T delta + c |delta|^2 + c noise); the rest is fourth moments
    of the Gaussian delta (Isserlis).
    """
    omega, c = v[..., :-1, :], v[..., -1:, :]  # (..., d, 1), (..., 1, 1)
    Phi, tau, t2, M, d = std.Phi, std.tau, std.t2, std.M, omega.shape[-2]
    Phi_omega, power = Phi @ omega, omega.mT @ omega  # (..., d, 1), (..., 1, 1)
    K = np.empty((*v.shape[:-2], d + 1, d + 1), v.dtype)
    K[..., :d, :d] = omega @ omega.mT + (M + 1) * c * c * Phi + (power + c * c * tau) * np.eye(d)
    K[..., :d, d:] = c * (tau * omega + (M + 3) * Phi_omega)
    K[..., d:, :d] = K[..., :d, d:].mT
    K[..., d:, d:] = tau * (power + 2 * c * c * tau) + 2 * (M + 2) * c * c * t2
    K[..., d:, d:] += (M + 1) * omega.mT @ Phi_omega
    C = np.concatenate([c * Phi, Phi_omega], axis=-1)
    return K / M, C, np.concatenate([omega, c * tau], axis=-2)


def _slope_in_v(std: Standard, v: Array, W: Array, bias: Array) -> Array:
    """Slope in v, (..., d+1, 1), of the risk with the given W and the given bias u + W m."""
    omega, c, Wx, wy = v[..., :-1, :], v[..., -1:, :], W[..., :-1], W[..., -1:]
    Phi, tau, M = std.Phi, std.tau, std.M
    Bxx, bxy, byy = Wx.mT @ Wx, Wx.mT @ wy, wy.mT @ wy  # (..., d, d), (..., d, 1), (..., 1, 1)
    trace = _dot(Wx, Wx)
    cross = tau * bxy + (M + 3) * Phi @ bxy
    # Half the slopes of <W^T W, K> - 2 <W, C>: the blocks xx, xy (twice) and yy of K, then C.
    g_omega = Bxx @ omega + trace * omega + c * cross + byy * (tau * omega + (M + 1) * Phi @ omega)
    g_c = c * ((M + 1) * _dot(Bxx, Phi) + tau * trace) + omega.mT @ cross
    g_c = g_c + 2 * c * byy * (tau**2 + (M + 2) * std.t2)
    pull = W.mT @ bias  # (..., d+1, 1)
    g_omega = g_omega / M - Phi @ wy + pull[..., :-1, :]
    g_c = g_c / M - _dot(Phi, Wx) + tau * pull[..., -1:, :]
    return 2 * np.concatenate([g_omega, g_c], axis=-2)


def _dot(A: Array, B: Array) -> Array:
    return np.asarray(np.sum(A * B, axis=(-2, -1), keepdims=True))


# --- minimisation over the direction of v ---------------------------------------------------------


def _profile(std: Standard, v: Array, free_u: bool) -> tuple[float, Array, Array]:
    """Risk minimised over W (and over u if it is free), the minimiser W, and the mean of G v."""
    K, C, m = _moments(std, v)
    least = std.tau[0, 0]
    if not free_u:
        b = std.R.T @ std.beta
        K, C, least = K + m @ m.T, C + b @ m.T, least + np.sum(b * b)
    W = _solve_psd(K, C)
    return float(least - np.sum(W * C)), W, m


def _profile_slope(point: Array, std: Standard, free_u: bool) -> tuple[float, Array]:
    """The profile at v = point (d+1,) and its gradient, (d+1,): W and u stay at their optimum."""
    v = point[:, None]
    value, W, m = _profile(std, v, free_u)
    bias = W @ m - std.R.T @ std.beta  # LSA's u is 0, an LTB's undoes any bias
    bias *= not free_u
    return value, _slope_in_v(std, v, W, bias)[:, 0]


_ANGLES = 24  # starts on each half circle


def _starts(std: Standard) -> list[Array]:
    """Points (omega, c) from which a minimisation starts: the local minima along half circles.

    The circles turn c's axis towards b, Phi b, Phi^2 b and each eigenvector of Phi. For H = I and
    Psi = psi I, every minimum that searches from random points found lay on the first of them.
    """
    b, Phi = (std.R.T @ std.beta)[:, 0], std.Phi
    directions = [b, Phi @ b, Phi @ (Phi @ b), *np.linalg.eigh(Phi)[1].T]
    units = [e / np.linalg.norm(e) for e in directions if np.linalg.norm(e) > 1e-12]
    # Half a step off the axes: the axis omega = 0 is where paper A says that the LTB's minimum is,
    # and a search that starts there would confirm nothing.
    angles = (np.arange(_ANGLES) + 0.5) * np.pi / _ANGLES - np.pi / 2
    return [np.append(np.sin(t) * e, np.cos(t)) for e in units for t in angles]


def _descend(start: Array, std: Standard, free_u: bool, tolerance: float) -> OptimizeResult:
    """Walk downhill on the profile from `start` until no gradient entry exceeds `tolerance`."""
    options = {"ftol": 0.0, "gtol": tolerance, "maxiter": 2000}
    return minimize(_profile_slope, start, (std, free_u), "L-BFGS-B", jac=True, options=options)


def _minimum(task: RegressionTask, free_u: bool) -> tuple[float, Array, Array, Array]:
    """(risk, v, W, u) at the global minimum; v's last entry is 1 unless it is 0."""
    # The unit makes the value to be minimised of order 1; labels that are all 0 have no unit.
    R, beta = _factor(task), task.beta_star
    signal = 0.0 if free_u else float(np.sum((R.T @ beta) ** 2))
    unit = float(np.sqrt(task.tau + signal)) or 1.0
    scaled = replace(task, Psi=task.Psi / unit**2, beta_star=beta / unit, sigma=task.sigma / unit)
    std = standardise(scaled, R)
    starts = _starts(std)
    heights = np.array([_profile(std, s[:, None], free_u)[0] for s in starts]).reshape(-1, _ANGLES)
    low = (heights <= np.roll(heights, 1, axis=1)) & (heights <= np.roll(heights, -1, axis=1))
    chosen = sorted(np.flatnonzero(low), key=lambda k: heights.flat[k])[:12]
    rough = [_descend(starts[k], std, free_u, tolerance=1e-6) for k in chosen]
    near = min(end.fun for end in rough) + 1e-3
    ends = [_descend(end.x, std, free_u, tolerance=1e-13) for end in rough if end.fun <= near]
    # d = 1 has a second minimiser, v and W swapped; of equal ends take the one that reads labels.
    least = min(end.fun for end in ends)
    equal = [end.x for end in ends if end.fun <= least + 1e-12]
    best = max(equal, key=lambda point: abs(point[-1]) / np.linalg.norm(point))
    omega, c = best[:-1], best[-1]
    value, W, m = _profile(std, best[:, None], free_u)
    # Back to the task's own units. Where H is singular, v and W are free; `back` leaves them at 0
    # there, but for what undoes the centring.
    back = np.linalg.pinv(R).T
    u = beta - unit * (back @ W @ m)[:, 0] if free_u else np.zeros(task.d)
    c /= unit
    v = np.append(back @ omega - c * beta, c)
    W = back @ W
    W = np.column_stack([unit * W[:, :-1] @ back.T - np.outer(W[:, -1], beta), W[:, -1]])
    norm = v[-1] if abs(v[-1]) > 1e-9 * np.linalg.norm(v) else np.linalg.norm(v)
    return unit**2 * value, v / norm, W * norm, u


def _solve_psd(K: Array, C: Array) -> Array:
    """C K^+ for positive semi-definite K, scaled to unit diagonal before its rank is judged."""
    size = np.sqrt(np.where(np.diag(K) > 0, np.diag(K), 1.0))
    scaled = K / np.outer(size, size)
    root, failed = dpotrf(scaled, lower=True)
    if not failed and np.diag(root).min() > 3e-7:  # far from singular: no need of the spectrum
        return np.asarray(dpotrs(root, (C / size).T, lower=True)[0].T / size)
    return (C / size) @ np.linalg.pinv(scaled, rcond=1e-13, hermitian=True) / size
