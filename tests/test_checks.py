"""Checks of arguments: what is accepted comes out unchanged, what is refused is named."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from iclbook.checks import as_array, as_count, as_covariance, as_generator, as_number, as_positive


def test_an_accepted_array_is_a_read_only_float64_copy() -> None:
    given = np.array([[1.0, 2.0], [3.0, 4.0]])
    array = as_array("A", given, (2, None))
    np.testing.assert_array_equal(array, given)
    assert array.dtype == np.float64
    assert not array.flags.writeable
    given[0, 0] = 7.0
    assert array[0, 0] == 1.0


@pytest.mark.parametrize("value", [[1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.int8)])
def test_lists_and_integers_are_arrays_too(value: Any) -> None:  # noqa: ANN401
    np.testing.assert_array_equal(as_array("a", value, (2,)), [1.0, 2.0])


def test_a_torch_tensor_in_float64_is_an_array() -> None:
    tensor = torch.tensor([1.5, 2.5], dtype=torch.float64)
    np.testing.assert_array_equal(as_array("a", tensor, (2,)), [1.5, 2.5])


def test_a_covariance_is_made_exactly_symmetric() -> None:
    A = np.array([[2.0, 0.3], [0.3 + 1e-15, 1.0]])
    out = as_covariance("A", A)
    np.testing.assert_array_equal(out, out.T)
    assert not out.flags.writeable


def test_a_rounded_low_rank_covariance_is_one() -> None:
    half = np.random.default_rng(0).standard_normal((30, 3))
    as_covariance("A", half @ half.T)  # 27 eigenvalues of about +-1e-15


def test_numbers_and_counts_pass_through() -> None:
    assert as_number("s", 0.25) == 0.25
    assert as_number("s", np.float64(0), least=0.0) == 0.0
    assert as_number("s", 3) == 3.0
    assert as_positive("s", 1e-300) == 1e-300
    assert as_count("n", np.int64(4)) == 4
    assert type(as_count("n", np.int64(4))) is int
    assert as_count("n", 0, least=0) == 0
    rng = np.random.default_rng(0)
    assert as_generator("rng", rng) is rng


VECTOR = lambda value: as_array("beta", value, (2,))  # noqa: E731
MATRIX = lambda value: as_covariance("Psi", value, 2)  # noqa: E731
SQUARE = lambda value: as_covariance("H", value)  # noqa: E731
NUMBER = lambda value: as_number("sigma", value, least=0.0)  # noqa: E731
POSITIVE = lambda value: as_positive("lr", value, "step size")  # noqa: E731
GENERATOR = lambda value: as_generator("rng", value)  # noqa: E731
COUNT = lambda value: as_count("M", value)  # noqa: E731


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (VECTOR, [1.0, 2.0, 3.0], "beta: got shape (3,), expected (2)"),
        (VECTOR, 1.0, "beta: got shape (), expected (2)"),
        (VECTOR, [[1.0, 2.0]], "beta: got shape (1, 2), expected (2)"),
        (VECTOR, [], "beta: got shape (0,), expected (2)"),
        (VECTOR, [1.0, np.nan], "beta: got 1 entries that are NaN or infinite, expected finite"),
        (VECTOR, [np.inf, -np.inf], "beta: got 2 entries that are NaN or infinite"),
        (VECTOR, np.ones(2, np.float32), "beta: got dtype float32, expected float64"),
        (VECTOR, np.ones(2, complex), "beta: got dtype complex128, expected float64"),
        (VECTOR, [True, False], "beta: got dtype bool, expected float64"),
        (VECTOR, "two", "beta: got dtype <U3, expected float64"),
        (VECTOR, ["1", "2"], "beta: got dtype <U1, expected float64"),
        (VECTOR, None, "beta: got dtype object, expected float64"),
        (VECTOR, [10**30, 1], "beta: got dtype object, expected float64"),
        (VECTOR, [[1.0], [1.0, 2.0]], "beta: got rows of unequal length, expected shape (2)"),
        (MATRIX, np.eye(3), "Psi: got shape (3, 3), expected (2, 2)"),
        (MATRIX, [[1.0, 0.5], [0.4, 1.0]], "Psi: got a matrix with asymmetry 0.1, expected a symm"),
        (MATRIX, [[1.0, 2.0], [2.0, 1.0]], "Psi: got a matrix with eigenvalue -1, expected a posi"),
        (MATRIX, -np.eye(2), "Psi: got a matrix with eigenvalue -1, expected a positive semi-def"),
        (SQUARE, np.ones((2, 3)), "H: got shape (2, 3), expected a square matrix"),
        (SQUARE, np.ones((0, 0)), "H: got shape (0, 0), expected (any, any)"),
        (NUMBER, -0.1, "sigma: got -0.1, expected at least 0.0"),
        (NUMBER, np.nan, "sigma: got 1 entries that are NaN or infinite, expected finite"),
        (NUMBER, np.inf, "sigma: got 1 entries that are NaN or infinite, expected finite"),
        (NUMBER, [1.0], "sigma: got shape (1,), expected ()"),
        (NUMBER, True, "sigma: got dtype bool, expected float64"),
        (NUMBER, 1j, "sigma: got dtype complex128, expected float64"),
        (NUMBER, "1", "sigma: got dtype <U1, expected float64"),
        (NUMBER, np.float32(1), "sigma: got dtype float32, expected float64"),
        (POSITIVE, 0, "lr: got 0.0, expected a positive step size"),
        (POSITIVE, -1e-9, "lr: got -1e-09, expected a positive step size"),
        (POSITIVE, np.nan, "lr: got 1 entries that are NaN or infinite, expected finite"),
        (COUNT, 0, "M: got 0, expected an integer of at least 1"),
        (COUNT, 2.5, "M: got 2.5, expected an integer of at least 1"),
        (COUNT, 2.0, "M: got 2.0, expected an integer of at least 1"),
        (COUNT, True, "M: got True, expected an integer of at least 1"),
        (COUNT, np.True_, "M: got np.True_, expected an integer of at least 1"),
        (COUNT, np.nan, "M: got nan, expected an integer of at least 1"),
        (COUNT, "3", "M: got '3', expected an integer of at least 1"),
        (GENERATOR, 0, "rng: got 0, expected a numpy.random.Generator"),
        (GENERATOR, None, "rng: got None, expected a numpy.random.Generator"),
        (GENERATOR, np.random.RandomState(0), "rng: got RandomState(MT19937)"),
        (COUNT, None, "M: got None, expected an integer of at least 1"),
    ],
)
def test_what_is_refused_is_named(
    check: Callable[[Any], object],
    value: Any,  # noqa: ANN401
    message: str,
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        check(value)
