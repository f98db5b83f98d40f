"""Exact risks and their minima, against integration, sampling and minimisation done another way."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from linear_tasks import random_covariance, random_task
from scipy.optimize import minimize, minimize_scalar

from iclbook.checks import Array
from iclbook.linear import (
    LinearSelfAttention,
    LinearTransformerBlock,
    RegressionTask,
    gd_beta_minimum,
    gd_beta_risk,
    lsa_minimum,
    lsa_risk,
    ltb_gradient,
    ltb_hessian,
    ltb_minimum,
    ltb_risk,
    token_matrix,
)
from iclbook.linear.risk import _factor, _profile_slope, standardise

Weights = tuple[Array, Array, Array]

# Tasks at the edges of the model: (d, M, the rest).
EDGES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "d = 1, M = 1": (1, 1, {}),
    "M < d": (4, 2, {}),
    "M > d": (2, 9, {}),
    "no noise": (3, 4, {"sigma": 0.0}),
    "M = 1, no noise": (2, 1, {"sigma": 0.0}),
    "Psi of rank 1": (3, 5, {"rank_Psi": 1}),
    "H of rank 2": (4, 5, {"rank_H": 2}),
    "H of rank 1": (2, 3, {"rank_H": 1, "sigma": 0.3}),
    "H and Psi of rank 1, no noise": (3, 3, {"rank_H": 1, "rank_Psi": 1, "sigma": 0.0}),
}


def edge_task(name: str) -> RegressionTask:
    d, M, rest = EDGES[name]
    return random_task(d, M, np.random.default_rng([ord(letter) for letter in name]), **rest)


@pytest.fixture(params=EDGES)
def task(request: pytest.FixtureRequest) -> RegressionTask:
    return edge_task(request.param)


def random_weights(d: int, rng: np.random.Generator) -> Weights:
    """(u, v, W) with entries of order 1."""
    return rng.standard_normal(d), rng.standard_normal(d + 1), rng.standard_normal((d, d + 1))


def gd_beta_weights(beta: Array, Gamma: Array) -> Weights:
    """GD-beta as an LTB: u = beta, v = (-beta, 1), W = [Gamma 0]."""
    return beta, np.append(-beta, 1.0), np.column_stack([Gamma, np.zeros(len(beta))])


# --- the risk of any weights ----------------------------------------------------------------------


def cubature(task: RegressionTask) -> tuple[Array, Array]:
    """Nodes (k, d) and weights (k,) for beta ~ N(beta_star, Psi), exact up to degree 5."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.array(list(itertools.product(nodes, repeat=task.d)))
    factors = np.array(list(itertools.product(weights / weights.sum(), repeat=task.d)))
    values, vectors = np.linalg.eigh(task.Psi)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    return task.beta_star + grid @ root.T, factors.prod(axis=1)


def token_covariance(task: RegressionTask, beta: Array) -> Array:
    """Sigma(beta) = [[H, H beta], [beta^T H, beta^T H beta + sigma^2]], (k, d+1, d+1)."""
    H_beta = beta @ task.H
    last = np.sum(H_beta * beta, axis=1) + task.sigma**2
    top = np.concatenate([np.tile(task.H, (len(beta), 1, 1)), H_beta[:, :, None]], axis=2)
    bottom = np.concatenate([H_beta, last[:, None]], axis=1)[:, None]
    return np.concatenate([top, bottom], axis=1)


def integrated_moments(task: RegressionTask, v: Array) -> tuple[Array, Array, Array]:
    """K = E[(M+1)/M Sigma v v^T Sigma + (v^T Sigma v) Sigma / M], C = E[beta (Sigma v)^T], m."""
    beta, weight = cubature(task)
    Sigma = token_covariance(task, beta)
    Sv = Sigma @ v
    kappa = (task.M + 1) / task.M
    K = kappa * np.einsum("k,ki,kj->ij", weight, Sv, Sv)
    K += np.einsum("k,k,kij->ij", weight, Sv @ v, Sigma) / task.M
    return K, np.einsum("k,ki,kj->ij", weight, beta, Sv), weight @ Sv


def integrated_risk(task: RegressionTask, u: Array, v: Array, W: Array) -> float:
    """sigma^2 + E |u + W G v - beta|_H^2, with the moments of G v from cubature."""
    K, C, m = integrated_moments(task, v)
    shift = u - task.beta_star
    second = np.outer(shift, shift) + task.Psi + 2 * np.outer(u, W @ m) - 2 * C @ W.T + W @ K @ W.T
    return float(task.sigma**2 + np.trace(task.H @ second))


def test_risks_of_random_weights_equal_the_integral_over_tasks(task: RegressionTask) -> None:
    """R = sigma^2 + tr H (E (u-beta)(u-beta)^T + 2 u (W m)^T - 2 C W^T + W K W^T)."""
    rng = np.random.default_rng(20)
    for _ in range(5):
        u, v, W = random_weights(task.d, rng)
        zero = np.zeros(task.d)
        assert ltb_risk(task, u, v, W) == pytest.approx(integrated_risk(task, u, v, W), rel=1e-10)
        assert lsa_risk(task, v, W) == pytest.approx(integrated_risk(task, zero, v, W), rel=1e-10)
        beta, Gamma = rng.standard_normal(task.d), rng.standard_normal((task.d, task.d))
        expected = integrated_risk(task, *gd_beta_weights(beta, Gamma))
        assert gd_beta_risk(task, beta, Gamma) == pytest.approx(expected, rel=1e-10)


def test_gd_beta_risk_is_the_risk_of_its_linear_block(task: RegressionTask) -> None:
    """u = beta, v = (-beta, 1), W = [Gamma 0] is GD-beta exactly."""
    rng = np.random.default_rng(21)
    for _ in range(20):
        beta, Gamma = rng.standard_normal(task.d), rng.standard_normal((task.d, task.d))
        block = ltb_risk(task, *gd_beta_weights(beta, Gamma))
        assert gd_beta_risk(task, beta, Gamma) == pytest.approx(block, rel=1e-12)


def test_zero_weights_have_the_variance_of_a_label(task: RegressionTask) -> None:
    """Predicting 0 costs tr H (Psi + beta_star beta_star^T) + sigma^2, predicting u costs less."""
    d, zero = task.d, np.zeros((task.d, task.d + 1))
    size = task.beta_star @ task.H @ task.beta_star
    assert lsa_risk(task, zero[0], zero) == pytest.approx(task.tau + size, rel=1e-13)
    assert ltb_risk(task, task.beta_star, zero[0], zero) == pytest.approx(task.tau, rel=1e-13)
    assert gd_beta_risk(task, np.zeros(d), zero[:, :d]) == pytest.approx(task.tau + size, rel=1e-13)


@pytest.mark.parametrize(
    ("d", "M", "sigma", "ranks", "draws", "seed"),
    [
        (1, 1, 0.5, (1, 1), 1_100_000, 1),
        (3, 2, 0.7, (3, 1), 500_000, 3),
        (2, 3, 0.0, (2, 2), 400_000, 3),
        (2, 1, 0.3, (1, 2), 260_000, 3),
    ],
)
def test_exact_risks_agree_with_sampled_token_matrices(
    d: int, M: int, sigma: float, ranks: tuple[int, int], draws: int, seed: int
) -> None:
    """E (layer(E) - y_query)^2 from sampled prompts that go through the layers.

    A prediction is <theta, x> with theta of the context (tested in test_layers), so the query can
    be averaged over exactly: theta's entries are the predictions for the queries e_1, ..., e_d,
    and given the context the risk is |theta - beta|_H^2 + sigma^2. Plain squared errors say the
    same with more noise.
    """
    rng = np.random.default_rng([d, M])
    H, Psi = (random_covariance(d, rank, rng) for rank in ranks)
    beta_star = rng.standard_normal(d) / np.sqrt(d)
    task = RegressionTask(H, 0.3 * Psi / d, beta_star, sigma, M)  # a small Psi has lighter tails
    weights = torch.Generator().manual_seed(seed)
    attention, block = LinearSelfAttention(d, weights), LinearTransformerBlock(d, weights)
    with torch.no_grad():
        attention.W_V *= 0.6
        block.W_V *= 0.6
    beta, Gamma = rng.standard_normal(d) / 2, 0.3 * random_covariance(d, d, rng)
    layers = [attention, block, LinearTransformerBlock.from_gd_beta(beta, Gamma)]
    exact = np.array(
        [
            lsa_risk(task, *attention.reduced()),
            ltb_risk(task, *block.reduced()),
            gd_beta_risk(task, beta, Gamma),
        ]
    )
    exact = np.column_stack([exact, exact])  # (layer, averaged or plain)
    sums, squares, power, size = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(3), 20_000
    assert draws % size == 0
    for _ in range(draws // size):
        p = task.sample(size, rng)
        tokens = [token_matrix(p.X, p.y, np.tile(e, (size, 1))) for e in np.eye(d)]
        for k, layer in enumerate(layers):
            with torch.no_grad():
                theta = torch.stack([layer(E) for E in tokens], dim=1).numpy()
            off = theta - p.beta
            averaged = np.sum(off @ task.H * off, axis=1) + task.sigma**2
            prediction = np.sum(theta * p.x, axis=1)
            errors = np.column_stack([averaged, (prediction - p.target) ** 2])
            sums[k] += errors.sum(axis=0)
            squares[k] += (errors**2).sum(axis=0)
            power[k] += np.sum(prediction**2)
    mean = sums / draws
    stderr = np.sqrt((squares / draws - mean**2) / draws)
    assert (power / draws > 0.1 * exact[:, 0])[1:].all()  # what the layers predict matters
    assert (stderr[:, 0] < 0.0025 * exact[:, 0]).all()  # 1 % is four standard errors
    assert (np.abs(mean - exact) < 4 * stderr).all()


# --- the minima -----------------------------------------------------------------------------------


def least_risk(task: RegressionTask, v: Array, *, free_u: bool) -> float:
    """The risk at v minimised over W, and over u if it is free, with moments from cubature.

    sigma^2 + tr H (Psi + beta* beta*^T - C K^-1 C^T), centred if u is free.
    """
    K, C, m = integrated_moments(task, v)
    size = task.Psi + np.outer(task.beta_star, task.beta_star)
    if free_u:
        K, C, size = K - np.outer(m, m), C - np.outer(task.beta_star, m), task.Psi
    return float(task.sigma**2 + np.trace(task.H @ (size - C @ np.linalg.solve(K, C.T))))


def search_all_weights(
    task: RegressionTask, rng: np.random.Generator, starts: int, *, free_u: bool
) -> list[float]:
    """Risks where L-BFGS over all of (u, v, W) ends, from random starts.

    Given beta, with S = Sigma(beta): E |u + W G v - beta|_H^2 is |u + W S v - beta|_H^2 plus
    (v^T S v tr(H W S W^T) + |W S v|_H^2) / M, the covariance of a Wishart matrix.
    """
    d = task.d
    beta, weight = cubature(task)
    S = torch.tensor(token_covariance(task, beta))
    beta, weight, H = torch.tensor(beta), torch.tensor(weight), torch.tensor(task.H.copy())

    def risk(flat: Array) -> tuple[float, Array]:
        point = torch.tensor(flat, requires_grad=True)
        u, v, W = point[:d] * free_u, point[d : 2 * d + 1], point[2 * d + 1 :].reshape(d, d + 1)
        Sv = S @ v
        off, WSv = u + Sv @ W.T - beta, Sv @ W.T
        spread = (Sv @ v) * torch.einsum("kij,ij->k", S, W.T @ H @ W)
        spread = spread + torch.sum(WSv @ H * WSv, dim=1)
        value = weight @ (torch.sum(off @ H * off, dim=1) + spread / task.M) + task.sigma**2
        value.backward()
        return value.item(), point.grad.numpy()

    size = d + (d + 1) ** 2
    options = {"maxiter": 200, "ftol": 1e-14, "gtol": 1e-9}
    return [
        minimize(
            risk, rng.standard_normal(size) / 2, jac=True, method="L-BFGS-B", options=options
        ).fun
        for _ in range(starts)
    ]


@pytest.mark.parametrize(
    "name", ["d = 1, M = 1", "M > d", "M = 1, no noise", "Psi of rank 1", "H of rank 1"]
)
@pytest.mark.parametrize("free_u", [False, True])
def test_the_minimum_is_the_least_that_a_search_over_all_weights_finds(
    name: str, *, free_u: bool
) -> None:
    task = edge_task(name)
    minimum = (ltb_minimum if free_u else lsa_minimum)(task).risk
    found = min(search_all_weights(task, np.random.default_rng(30), 4, free_u=free_u))
    assert found == pytest.approx(minimum, rel=1e-9)


def test_of_two_local_minima_the_lower_is_found() -> None:
    """For H = I and Psi = psi I the risk is a function of v's angle; here it has two valleys."""
    task = RegressionTask.isotropic(d=5, M=10, psi=0.2, signal=1.0, sigma=0.5)

    def risk(angle: float) -> float:
        v = np.zeros(6)
        v[0], v[5] = np.sin(angle), np.cos(angle)
        return least_risk(task, v, free_u=False)

    angles = (np.arange(360) + 0.5) * np.pi / 360 - np.pi / 2
    risks = np.array([risk(angle) for angle in angles])
    valleys = np.flatnonzero((risks < np.roll(risks, 1)) & (risks < np.roll(risks, -1)))
    assert len(valleys) == 2
    floors = sorted(
        minimize_scalar(
            risk, bounds=(angles[k] - 0.01, angles[k] + 0.01), options={"xatol": 1e-9}
        ).fun
        for k in valleys
    )
    assert floors[1] > 1.001 * floors[0]
    found = lsa_minimum(task)
    assert found.risk == pytest.approx(floors[0], rel=1e-11)
    assert lsa_risk(task, found.v, found.W) == pytest.approx(floors[0], rel=1e-11)


def test_the_lowest_of_many_valleys_is_found_in_general_tasks() -> None:
    """Searches over v's direction from random points never end below the minimum."""
    rng = np.random.default_rng(31)
    for _ in range(8):
        d, M = int(rng.integers(2, 5)), int(rng.integers(1, 30))
        task = random_task(d, M, rng, sigma=rng.choice([0.1, 0.5, 1.0]))
        task = replace(task, Psi=10 ** rng.uniform(-2, 1) * task.Psi)
        std = standardise(task, _factor(task))
        for free_u, minimum in ((False, lsa_minimum(task)), (True, ltb_minimum(task))):
            ends = [
                minimize(
                    _profile_slope,
                    rng.standard_normal(d + 1) * np.append(np.ones(d), 10 ** rng.uniform(-1, 1)),
                    args=(std, free_u),
                    jac=True,
                    method="L-BFGS-B",
                ).fun
                for _ in range(10)
            ]
            assert minimum.risk <= min(ends) * (1 + 1e-10)


@pytest.mark.parametrize("free_u", [False, True])
def test_the_gradient_over_v_is_that_of_finite_differences(*, free_u: bool) -> None:
    """Central differences of the risk minimised over W (and u)."""
    rng = np.random.default_rng(32)
    for name in ("d = 1, M = 1", "M < d", "M > d", "no noise", "Psi of rank 1"):
        task = edge_task(name)
        std = standardise(task, _factor(task))
        for _ in range(3):
            point, step = rng.standard_normal(task.d + 1), 1e-5
            numeric = [
                (
                    _profile_slope(point + step * e, std, free_u)[0]
                    - _profile_slope(point - step * e, std, free_u)[0]
                )
                / (2 * step)
                for e in np.eye(task.d + 1)
            ]
            exact = _profile_slope(point, std, free_u)[1]
            np.testing.assert_allclose(exact, numeric, atol=1e-7 * np.abs(exact).max() + 1e-9)


def test_the_risk_at_the_minimisers_is_the_minimum(task: RegressionTask) -> None:
    lsa, ltb, gd = lsa_minimum(task), ltb_minimum(task), gd_beta_minimum(task)
    assert lsa_risk(task, lsa.v, lsa.W) == pytest.approx(lsa.risk, rel=1e-10)
    assert ltb_risk(task, ltb.u, ltb.v, ltb.W) == pytest.approx(ltb.risk, rel=1e-10)
    assert gd_beta_risk(task, gd.beta, gd.Gamma) == pytest.approx(gd.risk, rel=1e-10)


def test_no_small_change_of_the_minimisers_lowers_the_risk(task: RegressionTask) -> None:
    rng = np.random.default_rng(33)
    lsa, ltb, gd = lsa_minimum(task), ltb_minimum(task), gd_beta_minimum(task)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(40):
            u, v, W = (size * change for change in random_weights(task.d, rng))
            slack = 1 - 1e-10
            assert lsa_risk(task, lsa.v + v, lsa.W + W) > slack * lsa.risk
            assert ltb_risk(task, ltb.u + u, ltb.v + v, ltb.W + W) > slack * ltb.risk
            assert gd_beta_risk(task, gd.beta + u, gd.Gamma + W[:, :-1]) > slack * gd.risk


def test_gd_beta_is_stationary_at_its_minimum(task: RegressionTask) -> None:
    """Central differences vanish; R is a quartic, so they are O(step^2) beside the curvature."""
    gd, d, step = gd_beta_minimum(task), task.d, 1e-5
    for change in np.eye(d + d * d):
        db, dG = step * change[:d], step * change[d:].reshape(d, d)
        up = gd_beta_risk(task, gd.beta + db, gd.Gamma + dG)
        down = gd_beta_risk(task, gd.beta - db, gd.Gamma - dG)
        assert abs(up - down) / (2 * step) < 1e-9


# --- the linear block's best is GD-beta -----------------------------------------------------------


def assert_ltb_is_gd_beta(task: RegressionTask) -> None:
    """u = beta_star, v = (-beta_star, 1), W = [Gamma 0], as functions: where x has variance."""
    ltb, gd = ltb_minimum(task), gd_beta_minimum(task)
    assert ltb.risk == pytest.approx(gd.risk, rel=1e-10)
    root = task.root_H
    scale = 1 + np.abs(gd.beta).max()
    np.testing.assert_allclose(root @ ltb.u, root @ gd.beta, atol=1e-5 * scale)
    np.testing.assert_allclose(root @ ltb.v[:-1], -root @ gd.beta, atol=1e-5 * scale)
    assert ltb.v[-1] == 1.0
    np.testing.assert_allclose(root @ ltb.W[:, :-1] @ root, root @ gd.Gamma @ root, atol=1e-5)
    np.testing.assert_allclose(root @ ltb.W[:, -1], 0.0, atol=1e-5)


def test_the_best_linear_block_is_the_best_gd_beta_at_the_edges(task: RegressionTask) -> None:
    assert_ltb_is_gd_beta(task)


def test_the_best_linear_block_is_the_best_gd_beta_in_general() -> None:
    rng = np.random.default_rng(34)
    for _ in range(12):
        d, M = int(rng.integers(1, 6)), int(rng.integers(1, 30))
        assert_ltb_is_gd_beta(random_task(d, M, rng, sigma=rng.choice([0.0, 0.2, 1.0])))


def test_the_best_linear_block_does_not_feel_how_large_the_shared_signal_is() -> None:
    """beta_star only shifts the labels, which u and v undo, so the risk cannot depend on it."""
    task = random_task(4, 7, np.random.default_rng(35))
    for signal in (0.0, 1e2, 1e4, 1e6):
        assert_ltb_is_gd_beta(replace(task, beta_star=signal * task.beta_star))


def test_in_one_dimension_the_minimiser_that_reads_labels_is_returned() -> None:
    """G is symmetric, so for d = 1 swapping v and W changes nothing."""
    task = random_task(1, 5, np.random.default_rng(36))
    ltb = ltb_minimum(task)
    swapped = ltb_risk(task, ltb.u, ltb.W[0], ltb.v[None])
    assert swapped == pytest.approx(ltb.risk, rel=1e-10)
    np.testing.assert_allclose(ltb.v, [-task.beta_star[0], 1.0], atol=1e-6)


def test_gd_beta_minimum_is_the_formula() -> None:
    """H = I, Psi = psi I: Gamma = psi / ((M+1)/M psi + tau/M) I, tau = d psi + sigma^2."""
    d, M, psi, sigma = 3, 7, 0.4, 0.6
    gd = gd_beta_minimum(RegressionTask.isotropic(d, M, psi, signal=2.0, sigma=sigma))
    tau = d * psi + sigma**2
    np.testing.assert_allclose(gd.Gamma, M * psi / ((M + 1) * psi + tau) * np.eye(d), rtol=1e-14)
    np.testing.assert_array_equal(gd.beta, [2.0, 0.0, 0.0])
    assert gd.risk == pytest.approx(
        sigma**2 + d * psi * (psi + tau) / ((M + 1) * psi + tau), rel=1e-14
    )


# --- invariances ----------------------------------------------------------------------------------


def minimal_risks(task: RegressionTask) -> Array:
    """LSA, LTB, GD-beta."""
    return np.array([f(task).risk for f in (lsa_minimum, ltb_minimum, gd_beta_minimum)])


def test_a_linear_change_of_covariates_leaves_the_minimal_risks(task: RegressionTask) -> None:
    """x -> A x: H -> A H A^T, beta -> A^-T beta, for any invertible A; rotations among them."""
    rng = np.random.default_rng(40)
    d = task.d
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    for A in (rotation, 10.0 * rotation + 3.0 * rng.standard_normal((d, d))):
        back = np.linalg.inv(A)
        H, Psi = A @ task.H @ A.T, back.T @ task.Psi @ back
        changed = replace(
            task, H=(H + H.T) / 2, Psi=(Psi + Psi.T) / 2, beta_star=back.T @ task.beta_star
        )
        np.testing.assert_allclose(minimal_risks(changed), minimal_risks(task), rtol=1e-9)
        u, v, W = random_weights(d, rng)
        moved = ltb_risk(
            changed,
            back.T @ u,
            np.append(back.T @ v[:d], v[d]),
            np.column_stack([back.T @ W[:, :d] @ back, back.T @ W[:, d]]),
        )
        assert moved == pytest.approx(ltb_risk(task, u, v, W), rel=1e-10)


def test_scaling_the_labels_scales_every_risk_by_the_square(task: RegressionTask) -> None:
    """y -> s y: beta_star and sigma by s, Psi by s^2, risks by s^2."""
    u, v, W = random_weights(task.d, np.random.default_rng(41))
    for s in (1e-3, 1e6):
        scaled = replace(
            task, Psi=s**2 * task.Psi, beta_star=s * task.beta_star, sigma=s * task.sigma
        )
        np.testing.assert_allclose(minimal_risks(scaled), s**2 * minimal_risks(task), rtol=1e-10)
        # v's label entry shrinks by s; the part of W G v that is not the label's grows by s.
        moved_v, moved_W = np.append(v[:-1], v[-1] / s), s * W
        moved_W[:, -1] /= s
        moved = ltb_risk(scaled, s * u, moved_v, moved_W)
        assert moved == pytest.approx(s**2 * ltb_risk(task, u, v, W), rel=1e-10)


def test_flipping_the_shared_signal_leaves_the_minimal_risks(task: RegressionTask) -> None:
    flipped = replace(task, beta_star=-task.beta_star)
    np.testing.assert_allclose(minimal_risks(flipped), minimal_risks(task), rtol=1e-10)


def test_only_the_product_of_the_scales_of_v_and_w_matters(task: RegressionTask) -> None:
    u, v, W = random_weights(task.d, np.random.default_rng(42))
    for c in (-1.0, 1e-4, 30.0):
        assert lsa_risk(task, c * v, W / c) == pytest.approx(lsa_risk(task, v, W), rel=1e-12)
        assert ltb_risk(task, u, c * v, W / c) == pytest.approx(ltb_risk(task, u, v, W), rel=1e-12)


# --- limits ---------------------------------------------------------------------------------------


def test_the_gap_is_never_negative_and_vanishes_without_shared_signal(
    task: RegressionTask,
) -> None:
    """u is one more freedom; with beta_star = 0 it is of no use."""
    lsa, ltb, _ = minimal_risks(task)
    assert lsa > ltb * (1 - 1e-12)
    lsa, ltb, _ = minimal_risks(replace(task, beta_star=np.zeros(task.d)))
    assert lsa == pytest.approx(ltb, rel=1e-10)


def test_with_a_shared_signal_there_is_a_gap() -> None:
    lsa, ltb, _ = minimal_risks(RegressionTask.isotropic(d=5, M=10, psi=0.2, signal=1, sigma=0.5))
    assert lsa > 1.1 * ltb


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_long_prompts_bring_every_risk_to_its_floor_at_rate_one_over_m(sigma: float) -> None:
    """M (risk - sigma^2) settles: the excess risks, and so the gap, are O(1/M)."""
    task = random_task(3, 1, np.random.default_rng(43), sigma=sigma)
    short, long = ((M * (minimal_risks(replace(task, M=M)) - sigma**2)) for M in (10**4, 10**5))
    np.testing.assert_allclose(short, long, rtol=0.02)
    assert (long > 0.01).all()
    assert long[0] > 1.1 * long[1]


def test_without_variety_of_tasks_the_block_knows_the_answer(task: RegressionTask) -> None:
    """Psi = 0: the label is <beta_star, x> plus noise, so the LTB's risk is sigma^2 exactly."""
    alike = replace(task, Psi=np.zeros((task.d, task.d)))
    ltb, gd = ltb_minimum(alike), gd_beta_minimum(alike)
    assert ltb.risk == pytest.approx(task.sigma**2, rel=1e-13, abs=1e-15)
    assert gd.risk == pytest.approx(task.sigma**2, rel=1e-13, abs=1e-15)
    np.testing.assert_array_equal(gd.Gamma, 0.0)
    assert ltb_risk(alike, ltb.u, ltb.v, ltb.W) == pytest.approx(task.sigma**2, abs=1e-14)
    assert lsa_minimum(alike).risk > task.sigma**2


@pytest.mark.parametrize(
    ("H", "beta_star", "risks"),
    [
        (np.eye(2), [0.0, 0.0], (0.0, 0.0, 0.0)),
        (np.zeros((2, 2)), [1.0, 2.0], (0.0, 0.0, 0.0)),
        (np.diag([1.0, 0.0]), [0.0, 3.0], (0.0, 0.0, 0.0)),
    ],
)
def test_labels_that_are_always_zero_cost_nothing(
    H: Array, beta_star: list[float], risks: tuple[float, float, float]
) -> None:
    task = RegressionTask(H, np.zeros((2, 2)), beta_star, 0.0, 3)
    np.testing.assert_array_equal(minimal_risks(task), risks)
    lsa, ltb = lsa_minimum(task), ltb_minimum(task)
    for part in (lsa.v, lsa.W, ltb.u, ltb.v, ltb.W):
        assert np.isfinite(part).all()
    assert lsa_risk(task, lsa.v, lsa.W) == ltb_risk(task, ltb.u, ltb.v, ltb.W) == 0.0


def test_covariates_that_are_always_zero_leave_the_noise() -> None:
    task = replace(random_task(3, 4, np.random.default_rng(44)), H=np.zeros((3, 3)))
    np.testing.assert_allclose(minimal_risks(task), task.sigma**2, rtol=1e-14)


def test_the_gap_lies_in_the_dimensions_that_covariates_have() -> None:
    """A singular H is a task of lower dimension: the minima must not use what no prompt shows.

    With long prompts and much signal an LSA layer would gain by a covariate that is pure noise:
    its average square is nearly constant, the very thing that the layer lacks.
    """
    plain = random_task(2, 30, np.random.default_rng(45), sigma=0.0)
    frame = np.linalg.qr(np.random.default_rng(46).standard_normal((5, 5)))[0][:, :2]
    H = frame @ plain.H @ frame.T
    Psi = 0.03 * random_covariance(5, 5, np.random.default_rng(47))
    inner = frame.T @ Psi @ frame
    beta_star = np.random.default_rng(48).standard_normal(5)
    raised = RegressionTask((H + H.T) / 2, Psi, beta_star, plain.sigma, plain.M)
    plain = replace(plain, Psi=(inner + inner.T) / 2, beta_star=frame.T @ beta_star)
    np.testing.assert_allclose(minimal_risks(raised), minimal_risks(plain), rtol=1e-10)


# --- slopes ---------------------------------------------------------------------------------------


def flat(parts: Sequence[Array]) -> Array:
    return np.concatenate([part.ravel() for part in parts])


def form(point: Array, d: int) -> Weights:
    u, v, W = np.split(point, [d, 2 * d + 1])
    return u, v, W.reshape(d, d + 1)


def five_points(f: Callable[[Array], Any], point: Array) -> Array:
    """Differences that are exact, up to rounding, along lines where f is of degree 4 or less."""
    h, axes = 0.1, np.eye(len(point))
    near = [np.asarray(f(point + h * e)) - f(point - h * e) for e in axes]
    wide = [np.asarray(f(point + 2 * h * e)) - f(point - 2 * h * e) for e in axes]
    return (8 * np.array(near) - np.array(wide)) / (12 * h)


def test_the_gradient_is_the_slope_of_the_exact_risk(task: RegressionTask) -> None:
    d = task.d
    point = flat(random_weights(d, np.random.default_rng(60)))
    slope = five_points(lambda x: ltb_risk(task, *form(x, d)), point)
    found = flat(ltb_gradient(task, *form(point, d)))
    np.testing.assert_allclose(found, slope, atol=1e-11 * np.abs(slope).max())


def test_the_hessian_is_the_slope_of_the_gradient_and_symmetric(task: RegressionTask) -> None:
    d = task.d
    point = flat(random_weights(d, np.random.default_rng(61)))
    slope = five_points(lambda x: flat(ltb_gradient(task, *form(x, d))), point)
    found = ltb_hessian(task, *form(point, d))
    np.testing.assert_allclose(found, slope, atol=1e-11 * np.abs(slope).max())
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize(("d", "M"), [(2, 3), (3, 6), (3, 40)])
def test_at_the_minimum_only_the_shared_factor_is_flat(d: int, M: int) -> None:
    """No gradient; one eigenvalue 0, along (0, v, -W), and no other one that is not positive."""
    task = random_task(d, M, np.random.default_rng([62, d, M]))
    least = ltb_minimum(task)
    where = least.u, least.v, least.W
    assert np.abs(flat(ltb_gradient(task, *where))).max() < 1e-7
    values, vectors = np.linalg.eigh(ltb_hessian(task, *where))
    assert abs(values[0]) < 1e-6 * values[-1]
    assert values[1] > 1e-4 * values[-1]
    along = flat((np.zeros(d), least.v, -least.W))
    assert abs(vectors[:, 0] @ along) / np.linalg.norm(along) == pytest.approx(1.0, abs=1e-6)


# --- bad input ------------------------------------------------------------------------------------

D2 = random_task(2, 3, np.random.default_rng(50))
GOOD: dict[str, Any] = {
    "beta": np.zeros(2),
    "Gamma": np.eye(2),
    "u": np.zeros(2),
    "v": np.zeros(3),
    "W": np.zeros((2, 3)),
}
RISKS: dict[Callable[..., object], tuple[str, ...]] = {
    gd_beta_risk: ("beta", "Gamma"),
    lsa_risk: ("v", "W"),
    ltb_risk: ("u", "v", "W"),
    ltb_gradient: ("u", "v", "W"),
    ltb_hessian: ("u", "v", "W"),
}


@pytest.mark.parametrize(
    ("risk", "name"), [(risk, name) for risk, names in RISKS.items() for name in names]
)
def test_bad_weights_are_refused(risk: Callable[..., object], name: str) -> None:
    good = GOOD[name]
    shape = str(good.shape).replace(",)", ")")
    for bad, message in (
        (np.zeros((*good.shape, 1)), f"got shape {(*good.shape, 1)}, expected {shape}"),
        (np.zeros(4), f"got shape (4,), expected {shape}"),
        (good * np.nan, f"got {good.size} entries that are NaN or infinite, expected finite"),
        (good + np.inf, f"got {good.size} entries that are NaN or infinite, expected finite"),
        (good.astype(np.float32), "got dtype float32, expected float64"),
        (good.astype(complex), "got dtype complex128, expected float64"),
        ("zeros", "got dtype <U5, expected float64"),
        (None, "got dtype object, expected float64"),
    ):
        arguments = [bad if other == name else GOOD[other] for other in RISKS[risk]]
        with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
            risk(D2, *arguments)
