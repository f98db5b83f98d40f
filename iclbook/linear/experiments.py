"""The cells of what takes hours on the prompts of paper A."""

from iclbook.linear.gpt2 import gpt_regression
from iclbook.sweep import Cell, Experiment

SIZES = [(1, 32), (2, 16), (2, 32), (3, 32)]  # depth, width
BARE: Cell = {"positions": False, "bias": False}
LONE: Cell = BARE | {"own": False}  # a query acts through its scores alone, as in paper A's layer
LINEAR: Cell = {"depth": 1, "softmax": False}
CONTROLS: list[Cell] = [
    LINEAR | LONE,
    LINEAR | LONE | {"constant": True},
    LINEAR | LONE | {"bias": True},
    LINEAR | LONE | {"mlp": True},
    LINEAR | BARE,
    LONE,
    LONE | {"mlp": True},
    {"own": False},
    {"own": False, "mlp": True},
    BARE,
    {"softmax": False},
    {"softmax": False, "mlp": True},
]


def _small(seeds: int) -> list[Cell]:
    return [
        {"seed": seed, "signal": signal, "mlp": mlp, "depth": 1, "width": 16, "steps": 300}
        for seed in range(seeds)
        for signal in (0, 10)
        for mlp in (False, True)
    ]


def _full(seeds: int) -> list[Cell]:
    both: list[Cell] = [{"mlp": False}, {"mlp": True}]
    kinds = [
        {"signal": signal, "depth": depth, "width": width} | mlp
        for signal in (0, 10)
        for depth, width in SIZES
        for mlp in both
    ]
    kinds += [{"signal": 3} | mlp for mlp in both]
    kinds += [{"signal": 10} | control for control in CONTROLS]
    kinds += [{"signal": 10, "steps": 12_000} | mlp for mlp in both]
    return [{"seed": seed} | kind for seed in range(seeds) for kind in kinds]


HEAVY = {
    "A-T1": Experiment(
        "A-T1", "GPT-2 with and without its MLPs, by size, signal and what it may see",
        gpt_regression, _small, _full, 3,
    )
}  # fmt: skip
