"""The task distribution: sampled prompts have the law of the model, and bad tasks are refused."""

import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from linear_tasks import random_task
from scipy import stats

from iclbook.checks import Array
from iclbook.linear import Prompts, RegressionTask

N = 100_000


@pytest.fixture(scope="module")
def task() -> RegressionTask:
    return random_task(3, 4, np.random.default_rng(1), sigma=0.7)


@pytest.fixture(scope="module")
def prompts(task: RegressionTask) -> Prompts:
    return task.sample(N, np.random.default_rng(2))


def assert_standard_normal(draws: Array) -> None:
    """Rows of `draws` (n, k) ~ N(0, I_k): mean, covariance and each column's distribution."""
    n, k = draws.shape
    # Mean: n |mean|^2 ~ chi^2_k.
    assert stats.chi2.sf(n * np.sum(draws.mean(axis=0) ** 2), k) > 1e-4
    # Covariance: a second moment deviates by N(0, 2/n) on the diagonal, by N(0, 1/n) off it.
    z = (draws.T @ draws / n - np.eye(k)) * np.sqrt(n / (1 + np.eye(k)))
    assert np.abs(z).max() < 4.5
    # Shape.
    assert min(stats.kstest(column, "norm").pvalue for column in draws.T) > 1e-4


def test_everything_drawn_is_standard_normal_and_independent_after_whitening(
    task: RegressionTask, prompts: Prompts
) -> None:
    """beta ~ N(beta_star, Psi), x ~ N(0, H), y - <beta, x> ~ N(0, sigma^2), all independent."""
    root_H, root_Psi = np.linalg.cholesky(task.H), np.linalg.cholesky(task.Psi)
    p = prompts
    noise = p.y - np.einsum("nmd,nd->nm", p.X, p.beta)
    query_noise = p.target - np.einsum("nd,nd->n", p.x, p.beta)
    columns = [
        np.linalg.solve(root_Psi, (p.beta - task.beta_star).T).T,
        np.linalg.solve(root_H, p.X.reshape(-1, 3).T).T.reshape(N, 12),
        np.linalg.solve(root_H, p.x.T).T,
        noise / task.sigma,
        query_noise[:, None] / task.sigma,
    ]
    assert_standard_normal(np.concatenate(columns, axis=1))


def test_shapes(prompts: Prompts) -> None:
    assert [a.shape for a in (prompts.X, prompts.y, prompts.x, prompts.target, prompts.beta)] == [
        (N, 4, 3),
        (N, 4),
        (N, 3),
        (N,),
        (N, 3),
    ]


def test_a_label_has_variance_tau_around_the_shared_signal(
    task: RegressionTask, prompts: Prompts
) -> None:
    """Var(y - <beta_star, x>) = tr(H Psi) + sigma^2."""
    squares = (prompts.target - prompts.x @ task.beta_star) ** 2
    assert task.tau == pytest.approx(np.trace(task.H @ task.Psi) + task.sigma**2, rel=1e-14)
    assert abs(squares.mean() - task.tau) < 4 * squares.std() / np.sqrt(N)


def test_phi_are_the_eigenvalues_of_psi_h(task: RegressionTask) -> None:
    """spec(H^(1/2) Psi H^(1/2)) = spec(Psi H), ascending."""
    expected = np.sort(np.linalg.eigvals(task.Psi @ task.H).real)
    np.testing.assert_allclose(task.phi, expected, rtol=1e-12)


def test_singular_covariances_are_sampled_within_their_range() -> None:
    task = random_task(4, 3, np.random.default_rng(3), sigma=0.0, rank_H=2, rank_Psi=1)
    p = task.sample(1000, np.random.default_rng(4))
    assert np.linalg.matrix_rank(p.X.reshape(-1, 4), tol=1e-10) == 2
    assert np.linalg.matrix_rank(p.beta - task.beta_star, tol=1e-10) == 1
    np.testing.assert_allclose(p.target, np.sum(p.x * p.beta, axis=1), atol=1e-14)


def test_the_roots_square_to_the_covariances_and_keep_their_rank() -> None:
    task = random_task(6, 3, np.random.default_rng(5), rank_H=2, rank_Psi=5)
    for root, square, rank in ((task.root_H, task.H, 2), (task.root_Psi, task.Psi, 5)):
        np.testing.assert_allclose(root @ root, square, atol=1e-14)
        np.testing.assert_array_equal(
            np.linalg.eigvalsh(root) > 1e-12, [False] * (6 - rank) + [True] * rank
        )


def test_isotropic_is_the_task_it_says() -> None:
    task = RegressionTask.isotropic(d=3, M=7, psi=0.2, signal=1.5, sigma=0.5)
    np.testing.assert_array_equal(task.H, np.eye(3))
    np.testing.assert_array_equal(task.Psi, 0.2 * np.eye(3))
    np.testing.assert_array_equal(task.beta_star, [1.5, 0.0, 0.0])
    assert (task.sigma, task.M, task.d) == (0.5, 7, 3)
    assert task.tau == pytest.approx(0.85, rel=1e-15)


# --- streams --------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_prompts_bit_for_bit(task: RegressionTask) -> None:
    first, second = (task.sample(50, np.random.default_rng(6)) for _ in range(2))
    for name in ("X", "y", "x", "target", "beta"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_second_call_draws_other_prompts(task: RegressionTask) -> None:
    rng = np.random.default_rng(6)
    first, second = task.sample(50, rng), task.sample(50, rng)
    for name in ("X", "y", "x", "target", "beta"):
        assert not np.any(getattr(first, name) == getattr(second, name))


def test_changing_one_part_of_the_task_leaves_the_other_draws_alone(task: RegressionTask) -> None:
    def sample(**changes: float | Array) -> Prompts:
        return replace(task, **changes).sample(50, np.random.default_rng(7))

    base = sample()
    for changes, kept in (
        ({"sigma": 0.1}, ("X", "x", "beta")),
        ({"H": np.eye(3)}, ("beta",)),
        ({"Psi": np.eye(3)}, ("X", "x")),
        ({"M": 9}, ("x", "beta")),
    ):
        other = sample(**changes)
        for name in kept:
            np.testing.assert_array_equal(getattr(other, name), getattr(base, name))
        assert not np.any(other.target == base.target)


# --- what a task guards ---------------------------------------------------------------------------


def test_a_task_keeps_read_only_copies() -> None:
    given = {"H": np.eye(2), "Psi": 0.5 * np.eye(2), "beta_star": np.ones(2)}
    task = RegressionTask(**given, sigma=1, M=np.int64(3))
    for name, array in given.items():
        array[:] = 9.0
        assert getattr(task, name).max() == {"H": 1.0, "Psi": 0.5, "beta_star": 1.0}[name]
    for name in ("H", "Psi", "beta_star", "root_H", "root_Psi"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(task, name)[:] = 0.0
    with pytest.raises(FrozenInstanceError):
        task.sigma = 2.0
    assert (type(task.sigma), type(task.M)) == (float, int)


GOOD: dict[str, Any] = {
    "H": np.eye(2),
    "Psi": np.eye(2),
    "beta_star": np.ones(2),
    "sigma": 1.0,
    "M": 3,
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("H", [[1.0, 0.5], [0.0, 1.0]], "got a matrix with asymmetry 0.5, expected a symmetric"),
        ("H", [[1.0, 0.0], [0.0, -1.0]], "got a matrix with eigenvalue -1, expected a positive"),
        ("H", np.ones((2, 3)), "got shape (2, 3), expected a square matrix"),
        ("H", np.ones(2), "got shape (2,), expected (any, any)"),
        ("H", [[1.0, np.nan], [np.nan, 1.0]], "got 2 entries that are NaN or infinite"),
        ("H", np.eye(2, dtype=np.float32), "got dtype float32, expected float64"),
        ("H", np.eye(2, dtype=complex), "got dtype complex128, expected float64"),
        ("H", "identity", "got dtype <U8, expected float64"),
        ("Psi", [[1.0, 0.5], [0.0, 1.0]], "got a matrix with asymmetry 0.5, expected a symmetric"),
        ("Psi", [[0.0, 1.0], [1.0, 0.0]], "got a matrix with eigenvalue -1, expected a positive"),
        ("Psi", np.eye(3), "got shape (3, 3), expected (2, 2)"),
        ("Psi", np.full((2, 2), np.inf), "got 4 entries that are NaN or infinite"),
        ("Psi", np.eye(2, dtype=np.float32), "got dtype float32, expected float64"),
        ("beta_star", np.ones(3), "got shape (3,), expected (2)"),
        ("beta_star", np.ones((2, 1)), "got shape (2, 1), expected (2)"),
        ("beta_star", [np.nan, 0.0], "got 1 entries that are NaN or infinite"),
        ("beta_star", np.ones(2, np.float32), "got dtype float32, expected float64"),
        ("beta_star", [1j, 0], "got dtype complex128, expected float64"),
        ("sigma", -0.5, "got -0.5, expected at least 0.0"),
        ("sigma", np.nan, "got 1 entries that are NaN or infinite"),
        ("sigma", "0.5", "got dtype <U3, expected float64"),
        ("sigma", [0.5, 0.5], "got shape (2,), expected ()"),
        ("M", 0, "got 0, expected an integer of at least 1"),
        ("M", -3, "got -3, expected an integer of at least 1"),
        ("M", 2.5, "got 2.5, expected an integer of at least 1"),
        ("M", True, "got True, expected an integer of at least 1"),
        ("M", np.inf, "got inf, expected an integer of at least 1"),
        ("M", "3", "got '3', expected an integer of at least 1"),
    ],
)
def test_a_bad_task_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
        RegressionTask(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d", 0),
        ("d", 2.0),
        ("d", True),
        ("M", 0),
        ("M", 2.5),
        ("psi", -0.1),
        ("psi", np.nan),
        ("psi", "1"),
        ("signal", -1.0),
        ("signal", np.inf),
        ("signal", np.float32(1)),
        ("sigma", -1.0),
        ("sigma", 1j),
    ],
)
def test_a_bad_isotropic_task_is_refused(name: str, value: object) -> None:
    good: dict[str, Any] = {"d": 2, "M": 3, "psi": 0.5, "signal": 1.0, "sigma": 1.0}
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected"):
        RegressionTask.isotropic(**{**good, name: value})


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3", None])
def test_a_bad_number_of_prompts_is_refused(task: RegressionTask, n: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^n: got .*, expected an integer of at least 1"):
        task.sample(n, np.random.default_rng(0))


# --- random tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "M"), [(1, 1), (2, 7), (6, 3)])
def test_a_random_task_carries_label_variance_1_in_each_part(d: int, M: int) -> None:
    task = RegressionTask.random(d, M, np.random.default_rng(d), sigma=0.3)
    assert (task.d, task.M, task.sigma) == (d, M, 0.3)
    assert task.beta_star @ task.H @ task.beta_star == pytest.approx(1.0, rel=1e-13)
    assert np.trace(task.H @ task.Psi) == pytest.approx(1.0, rel=1e-13)
    assert np.linalg.eigvalsh(task.H)[0] >= 0.3
    if d > 1:
        assert np.abs(task.H @ task.Psi - task.Psi @ task.H).max() > 1e-3


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_the_spectrum_of_a_random_tasks_own_part_falls_as_stated(decay: float) -> None:
    task = RegressionTask.random(5, 3, np.random.default_rng(0), decay=decay)
    values = np.linalg.eigvalsh(task.Psi)[::-1]
    np.testing.assert_allclose(values / values[0], np.arange(1.0, 6.0) ** -decay, rtol=1e-12)


def test_a_random_task_is_the_generators() -> None:
    first, same, other = (
        RegressionTask.random(3, 4, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.H, same.H)
    assert np.abs(first.H - other.H).max() > 0.01


def test_bad_arguments_of_random_tasks_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^d: got 0, expected an integer of at least 1"):
        RegressionTask.random(0, 3, rng)
    with pytest.raises(ValueError, match=r"^decay: got -1.0, expected at least 0.0"):
        RegressionTask.random(2, 3, rng, decay=-1.0)
    with pytest.raises(ValueError, match=r"^rng: got 7, expected a numpy.random.Generator"):
        RegressionTask.random(2, 3, 7)
    with pytest.raises(ValueError, match=r"^rng: got None, expected a numpy.random.Generator"):
        RegressionTask.random(2, 3, rng).sample(1, None)
