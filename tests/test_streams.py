"""Random streams: repeatable, independent of one another, and the same in every process."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from iclbook.streams import stream, torch_stream


def test_the_same_seed_and_name_give_the_same_draws_whatever_was_drawn_before() -> None:
    first = stream(3, "tasks").standard_normal(100)
    stream(3, "noise").standard_normal(17)
    np.testing.assert_array_equal(stream(3, "tasks").standard_normal(100), first)


def test_torch_streams_repeat_too() -> None:
    first = torch.randn(50, generator=torch_stream(3, "weights"))
    assert torch.equal(torch.randn(50, generator=torch_stream(3, "weights")), first)
    assert not torch.equal(torch.randn(50, generator=torch_stream(4, "weights")), first)
    assert not torch.equal(torch.randn(50, generator=torch_stream(3, "noise")), first)


def test_other_names_and_seeds_give_uncorrelated_draws() -> None:
    n = 20_000
    pairs = [(seed, name) for seed in (0, 1, 2) for name in ("tasks", "noise", "task", "tasks ")]
    draws = np.stack([stream(seed, name).standard_normal(n) for seed, name in pairs])
    off = np.corrcoef(draws)[np.triu_indices(len(pairs), 1)]
    # 66 correlations of independent draws: each is about N(0, 1/n), so 5 deviations is far out
    assert np.abs(off).max() < 5 / np.sqrt(n)


def test_adjacent_seeds_fill_the_unit_interval_evenly() -> None:
    first = np.array([stream(seed, "data").random() for seed in range(2000)])
    counts, _ = np.histogram(first, bins=10, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 35  # chi-square, 9 degrees: beyond 35 is 6e-5


def test_recorded_first_draws() -> None:
    # A change here changes every number of the book.
    assert stream(0, "tasks").integers(0, 2**63) == 4_725_631_600_022_263_651
    torch_draw = torch.randint(0, 2**62, (1,), generator=torch_stream(0, "tasks")).item()
    assert torch_draw == 844_696_868_250_033_004


def test_another_process_draws_the_same() -> None:
    code = "from iclbook.streams import stream; print(stream(5, 'noise').integers(0, 2**63))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(printed) == stream(5, "noise").integers(0, 2**63)


def test_a_numpy_integer_is_a_seed() -> None:
    assert stream(np.int64(7), "a").random() == stream(7, "a").random()


@pytest.mark.parametrize("make", [stream, torch_stream])
@pytest.mark.parametrize(
    ("seed", "name"), [(-1, "a"), (1.0, "a"), (True, "a"), ("1", "a"), (None, "a"), (1, ""), (1, 2)]
)
def test_bad_seeds_and_names_are_refused(
    make: Callable[[Any, Any], object], seed: object, name: object
) -> None:
    with pytest.raises(ValueError, match=r"seed|name"):
        make(seed, name)
