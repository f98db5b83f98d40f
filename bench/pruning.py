"""What pruning saves in time: a layer without the removed rows of W_O, against the whole one.

python bench/pruning.py [--write book/results/time-pruning.md]

512 prompts of 20 contexts at once, one thread. The cost does not depend on what the weights are,
so the rows go from an untrained layer. All are timed in turn, round after round, so that a busy
machine slows all of them, and the table shows the best of the rounds.
"""

import time

import numpy as np
import torch
from report import machine, run

from iclbook.nonlinear import (
    OneLayerTransformer,
    all_tasks,
    orthogonal_patterns,
    prune,
    sample_prompts,
    shrink,
)

RATES, WIDTHS, N, ROUNDS = (0.0, 0.14, 0.4, 0.8), (200, 2000, 20000), 512, 40
PATTERNS = orthogonal_patterns(6, 24, 56, 8, 1.0, np.random.default_rng(0))
PROMPTS = sample_prompts(PATTERNS, all_tasks(6), N, 20, 0.8, np.random.default_rng(1))
TOKENS, QUERY = torch.tensor(PROMPTS.tokens), torch.tensor(PROMPTS.query)


@torch.no_grad()
def microseconds(model: OneLayerTransformer) -> float:
    """Wall time of one prompt."""
    start = time.perf_counter()
    model(TOKENS, QUERY)
    return 1e6 * (time.perf_counter() - start) / N


def measure(m: int) -> list[float]:
    """Least time a prompt at each rate, relative to the whole layer."""
    whole = OneLayerTransformer(56, 8, m, torch.Generator().manual_seed(0))
    layers = [shrink(prune(whole, rate)) for rate in RATES]
    rounds = [[microseconds(layer) for layer in layers] for _ in range(ROUNDS)]
    best = np.min(rounds, axis=0)
    return list(best / best[0])


def table(results: dict[int, list[float]]) -> str:
    """The Markdown table."""
    head = " | ".join(f"{100 * rate:.0f} % removed" for rate in RATES)
    lines = [f"| neurons | {head} |", "|---|" + "---:|" * len(RATES)]
    for m, ratios in results.items():
        lines.append(f"| $m={m}$ | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    where = f"{machine()}, torch {torch.__version__}"
    return "\n".join(lines) + f"\n\nTime over that of the whole layer. Measured on {where}.\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(__doc__, lambda: table({m: measure(m) for m in WIDTHS}))
