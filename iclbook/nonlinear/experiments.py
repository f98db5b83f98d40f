"""The cells of what takes hours on the prompts of paper B."""

from iclbook.nonlinear.contest import digits
from iclbook.nonlinear.gpt2 import gpt_classification
from iclbook.sweep import Cell, Experiment


def _small(seeds: int) -> list[Cell]:
    return [{"seed": seed, "beta": 2.0, "width": 16, "steps": 60} for seed in range(seeds)]


def _full(seeds: int) -> list[Cell]:
    kinds: list[Cell] = [
        {"beta": 2.0},
        {"beta": 1.0},
        {"beta": 4.0},
        {"beta": 2.0, "depth": 1},
        {"beta": 2.0, "depth": 2},
        {"beta": 2.0, "fixed": True},
    ]
    return [{"seed": seed} | kind for seed in range(seeds) for kind in kinds]


LAYERS = Experiment(
    "B-F3a", "GPT-2 of three layers: error out of domain and by length, attention, neurons",
    gpt_classification, _small, _full, 5,
)  # fmt: skip


def _digits_small(seeds: int) -> list[Cell]:
    sizes: list[Cell] = [
        {"model": "GPT", "prompts": 20, "steps": 60},
        {"model": "classical", "prompts": 10},
    ]
    return [{"seed": seed} | size for seed in range(seeds) for size in sizes]


def _digits_full(seeds: int) -> list[Cell]:
    return [{"seed": s, "model": model} for model in ("GPT", "classical") for s in range(seeds)]


DIGITS = Experiment(
    "X-digits", "8 x 8 digits: classical learners, tuned, and a small GPT, on unseen pairs",
    digits, _digits_small, _digits_full, 6,
)  # fmt: skip
HEAVY = dict.fromkeys(("B-F3a", "B-F3b", "B-F6", "B-F7"), LAYERS)
HEAVY |= dict.fromkeys(("X-digits", "X-digits-gpt"), DIGITS)
