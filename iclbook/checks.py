"""Checks of arguments: a ValueError names the argument, what was given, what was expected."""

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def as_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> Array:
    """A read-only float64 copy of `value`, whose shape must be `shape`.

    A None in `shape` stands for any size of at least 1.

    Accepts float64 and integers; refuses everything else, float32 included, since a number that
    was rounded before it came here cannot be compared to 1e-10.

    Raises:
        ValueError: wrong dtype, wrong shape, NaN or infinity.
    """
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    try:
        given = np.asarray(value)
    except ValueError:  # rows of unequal length; NumPy's message does not name the argument
        raise ValueError(f"{name}: got rows of unequal length, expected shape {wanted}") from None
    if not (given.dtype == np.float64 or np.issubdtype(given.dtype, np.integer)):
        raise ValueError(f"{name}: got dtype {given.dtype}, expected float64 (or integers)")
    fits = given.ndim == len(shape) and all(
        have >= 1 if want is None else have == want
        for have, want in zip(given.shape, shape, strict=False)
    )
    if not fits:
        raise ValueError(f"{name}: got shape {given.shape}, expected {wanted}")
    array = np.array(given, dtype=np.float64)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name}: got {bad} entries that are NaN or infinite, expected finite ones"
        )
    array.flags.writeable = False
    return array


def as_covariance(name: str, value: ArrayLike, d: int | None = None) -> Array:
    """A (d, d) symmetric positive semi-definite matrix, as a read-only float64 copy.

    Asymmetry and negative eigenvalues are forgiven at the level of rounding only (1e-12 of the
    largest entry).

    Raises:
        ValueError: not a square float64 matrix of size d, not symmetric, or indefinite.
    """
    array = as_array(name, value, (d, d))
    if array.shape[0] != array.shape[1]:
        raise ValueError(f"{name}: got shape {array.shape}, expected a square matrix")
    scale = np.abs(array).max()
    asymmetry = np.abs(array - array.T).max()
    if asymmetry > 1e-12 * scale:
        raise ValueError(
            f"{name}: got a matrix with asymmetry {asymmetry:.3g}, expected a symmetric one"
        )
    lowest = np.linalg.eigvalsh(array)[0]
    if lowest < -1e-12 * scale * len(array):
        raise ValueError(
            f"{name}: got a matrix with eigenvalue {lowest:.3g}, "
            "expected a positive semi-definite one"
        )
    symmetric = (array + array.T) / 2
    symmetric.flags.writeable = False
    return symmetric


def as_number(name: str, value: float, least: float = -math.inf) -> float:
    """A finite real number, at least `least`.

    Raises:
        ValueError: not one real number, NaN, infinite, or below `least`.
    """
    number = float(as_array(name, value, ()))
    if number < least:
        raise ValueError(f"{name}: got {number}, expected at least {least}")
    return number


def as_positive(name: str, value: float, what: str = "number") -> float:
    """A finite real number above 0; `what` says in the message what is expected.

    Raises:
        ValueError: not one real number, NaN, infinite, zero or below.
    """
    number = as_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: got {number}, expected a positive {what}")
    return number


def as_count(name: str, value: int, least: int = 1) -> int:
    """An integer, at least `least`.

    Raises:
        ValueError: not an integer (True and False are none), or below `least`.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name}: got {value!r}, expected an integer of at least {least}"
        ) from None
    if count < least:
        raise ValueError(f"{name}: got {count}, expected an integer of at least {least}")
    return count


def as_generator(name: str, value: np.random.Generator | None) -> np.random.Generator:
    """A NumPy generator, the same object.

    Raises:
        ValueError: anything else, a seed included.
    """
    if not isinstance(value, np.random.Generator):
        raise ValueError(  # noqa: TRY004 (one kind of error for all arguments)
            f"{name}: got {value!r}, expected a numpy.random.Generator"
        )
    return value
