"""What a training step of the small GPT-2 costs, side by side with Hugging Face's in one run.

pip install transformers
python bench/gpt.py [--write book/results/speed-gpt.md]

3 blocks, width 64, 2 heads, batch 64, d = 5, 20 examples with x and y as separate tokens (41 of
them), a loss at every x: the task of Garg, Tsipras, Liang and Valiant (NeurIPS 2022), whose public
code reads Hugging Face's GPT2Model in and out by linear maps, as here. Single precision, Adam,
drawing the prompts included, no dropout. The two are timed in turn, round after round, so that a
busy machine slows both, and the table shows the best of the rounds.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from report import machine, run
from torch import Tensor, nn

from iclbook.gpt import GPT
from iclbook.linear import RegressionTask
from iclbook.linear.gpt2 import as_sequence

D, M, WIDTH, DEPTH, HEADS, BATCH, STEPS, ROUNDS = 5, 20, 64, 3, 2, 64, 5, 12
TASK = RegressionTask.isotropic(D, M, psi=1.0, signal=0.0, sigma=0.5)


class Public(nn.Module):
    """Hugging Face's GPT-2 between two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.GPT2Config(
            n_positions=2 * M + 1, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.read_in = nn.Linear(D + 1, WIDTH)
        self.gpt = transformers.GPT2Model(config)
        self.read_out = nn.Linear(WIDTH, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, d + 1) -> (n, t)."""
        stream = self.gpt(inputs_embeds=self.read_in(tokens)).last_hidden_state
        return self.read_out(stream)[:, :, 0]


def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (x; 0), (0; y) in turn, (n, 2 M + 1, d + 1), and the labels of all x, (n, M + 1)."""
    prompts = TASK.sample(BATCH, rng)
    pairs = as_sequence(prompts)
    label = torch.zeros(D + 1)
    label[-1] = 1.0
    tokens = torch.stack([pairs * (1 - label), pairs * label], dim=2).flatten(1, 2)[:, :-1]
    labels = torch.cat([pairs[:, :-1, -1], torch.from_numpy(prompts.target).float()[:, None]], 1)
    return tokens, labels


def trainer(model: nn.Module) -> Callable[[int], None]:
    """What takes a number of steps of Adam."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=isinstance(model, GPT))
    rng = np.random.default_rng(0)

    def steps(count: int) -> None:
        for _ in range(count):
            tokens, labels = draw(rng)
            loss = (model(tokens)[:, ::2] - labels).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return steps


def measure() -> str:
    """The table."""
    generator = torch.Generator().manual_seed(0)
    ours = GPT(D + 1, 2 * M + 1, width=WIDTH, depth=DEPTH, heads=HEADS, generator=generator)
    ways = {"Hugging Face's GPT2Model": trainer(Public()), "iclbook.gpt": trainer(ours)}
    best = dict.fromkeys(ways, np.inf)
    for steps in ways.values():
        steps(2)
    for _ in range(ROUNDS):
        for name, steps in ways.items():
            began = time.perf_counter()
            steps(STEPS)
            best[name] = min(best[name], 1e3 * (time.perf_counter() - began) / STEPS)
    slow = max(best.values())
    rows = [f"| {name} | {ms:.0f} | {slow / ms:.2f} |" for name, ms in best.items()]
    note = (
        f"{DEPTH} blocks of width {WIDTH}, batch {BATCH}, {2 * M + 1} tokens, single precision. "
        f"Measured on {machine()}, {torch.get_num_threads()} thread(s) of torch, torch "
        f"{torch.__version__}, transformers {transformers.__version__}."
    )
    head = ["| way | ms a step | times faster |", "|---|---:|---:|"]
    return "\n".join([*head, *rows, "", note, ""])


if __name__ == "__main__":
    run(__doc__ or "", measure)
