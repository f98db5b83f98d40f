"""Named streams of random numbers: every random part of a chapter draws from its own.

A chapter has one seed. Its tasks, prompts, noise and initial weights each take the stream of that
seed with their own name, so that drawing more of one never changes another, and the order of the
cells does not matter.
"""

import hashlib
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _sequence(seed: int, name: str) -> np.random.SeedSequence:
    """Seed sequence of one stream; the errors are those of `stream`."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"a seed is a whole number, 0 or more, not {seed!r}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"a stream needs a name that is not empty, not {name!r}")
    # Python's own hash() of a string changes from one process to the next; this one never does.
    digest = hashlib.sha256(name.encode()).digest()
    words = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.SeedSequence(int(seed), spawn_key=words)


def stream(seed: int, name: str) -> np.random.Generator:
    """NumPy generator of the stream called `name` of a seed.

    Args:
        seed: Not negative.
        name: What the stream is for, such as ``"tasks"`` or ``"noise"``. Not empty.

    Returns:
        A generator with the same numbers for the same seed and name, in any process and any order
        of calls, and with independent numbers for any other pair.

    Raises:
        ValueError: If the seed is negative or not a whole number, or the name is empty.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, name)))


def torch_stream(seed: int, name: str) -> "torch.Generator":
    """Torch generator (on the CPU) of the stream called `name` of a seed.

    Parameters and errors are those of `stream`. The numbers differ from those of `stream`.
    """
    import torch  # here, because chapters without training should not wait for this import

    state = _sequence(seed, name).generate_state(1, np.uint64)[0]
    generator = torch.Generator()
    generator.manual_seed(int(state >> np.uint64(1)))  # manual_seed takes 63 bits without wrapping
    return generator
