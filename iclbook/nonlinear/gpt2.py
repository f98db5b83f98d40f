"""A GPT-2 on the prompts of paper B: error, attention and neurons."""

import copy
from typing import Any, cast

import numpy as np
import torch

from iclbook.checks import Array, as_number
from iclbook.gpt import GPT, Block, fit
from iclbook.nonlinear.patterns import (
    Patterns,
    World,
    all_tasks,
    coefficients_with_sum,
    draw_world,
    out_of_domain,
)
from iclbook.nonlinear.prompts import Prompts, sample_prompts
from iclbook.streams import stream, torch_stream

L, ALPHA = 20, 0.8
LEVELS = (0.5, 0.3, 0.1, 0.03)  # of the hinge loss: where a run is looked at more closely
SUMS = (0.5, 0.7, 0.9, 1.1, 1.3)  # S_1
ALPHAS = (0.8, 0.9, 1.0)
LENGTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
BINS = np.linspace(0, np.pi, 19)


def as_sequence(prompts: Prompts) -> torch.Tensor:
    """A prompt as one sequence, (n, l + 1, dX + dY): contexts (x; y q), then the query (x; 0)."""
    tokens = np.concatenate([prompts.tokens, prompts.query[:, None]], axis=1)
    return torch.from_numpy(tokens).float()


def near_one_pattern(M1: int, s: float, rng: np.random.Generator) -> Array:
    """Four orthogonal rows of one norm; the first two are s e_c + 0.3 (e_a - e_b): S_1 = s.

    The norm is free: it grows with s. The other two rows serve as patterns besides the task's.

    Raises:
        ValueError: M1 below 6, or s not a number.
    """
    if M1 < 6:
        raise ValueError(f"M1: got {M1}, expected at least 6")
    rows = np.zeros((2, M1))
    rows[:, :6] = np.array([[0.3, -0.3, as_number("s", s)] + 3 * [0], 3 * [0] + [0.3, -0.3, s]])
    rows = rows[:, rng.permutation(M1)]
    beside = rng.standard_normal((M1, 2))
    beside -= np.linalg.pinv(rows) @ (rows @ beside)
    return np.concatenate([rows, np.linalg.norm(rows[0]) * np.linalg.qr(beside)[0].T])


def neuron_labels(model: GPT, patterns: Patterns) -> tuple[Array, Array]:
    """How each neuron of a GPT's MLPs is turned by the label of a token that attention sees.

    A label q enters the stream by the read-in, reaches the query by a block's values, and meets the
    rows of that block's MLP. So a neuron's label part is a row of the product of these maps, with
    the gains of the norms, as W_O W_V is in one layer. The other paths, through earlier blocks, are
    left out.

    Returns:
        angle of each label part to q, in radians, (depth, 4 width), and the neuron's direct weight
        on the answer, whose sign stands for that of a_i, (depth, 4 width).

    Source: paper B, appendix, the neurons of three layers; the direct path is this book's reading.
    """
    angles, weights = [], []
    answer = model.read_out.weight[0] * model.norm.weight  # (width,)
    for block in cast("list[Block]", model.blocks):
        values = block.attend.query_key_value.weight[-answer.numel() :]  # (width, width)
        seen = block.attend.write.weight @ values @ torch.diag(block.norm_1.weight)
        rows = block.grow.weight @ torch.diag(block.norm_2.weight) @ seen @ model.read_in.weight
        part = rows[:, patterns.dX :].detach().cpu().double().numpy()
        angles.append(np.arccos(part @ patterns.q / np.linalg.norm(part, axis=1)))
        weights.append((answer @ block.write.weight).detach().cpu().double().numpy())
    return np.array(angles), np.array(weights)


def gpt_classification(
    seed: int,
    *,
    beta: float = 1.0,
    depth: int = 3,
    width: int = 64,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 0.2,
    fixed: bool = False,
    test: int = 500,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a GPT of two heads on the prompts of paper B by SGD on the hinge loss, and look inside.

    Each batch draws its number of contexts from 1 to 20, or has 20 if that is `fixed`: a model with
    positions knows no others. Test prompts are about tasks that were never trained.

    Returns:
        steps: where the run was looked at, 50 times.
        loss, error: hinge loss and sign error there, 20 contexts, alpha' = 0.8.
        attention: share of the query's attention on contexts with its pattern, among contexts,
            by block and head.
        spread: by block, how far the neurons that speak for -1 turn from q beyond those that speak
            for +1: difference of the mean angles to q, in degrees, weighted by what they say.
        close: what `_closely` finds at the first look with a loss below each of LEVELS, and at the
            end, with `step` and `below`.

    Source: paper B, Figures 3, 6 and 7. Its sizes but for depth and heads, and its training, are
    not known.
    """
    world = draw_world(stream(seed, "gpt: world"), beta=beta)
    patterns = world.patterns
    model = GPT(
        patterns.dX + patterns.dY, L + 1, width=width, depth=depth, heads=2,
        generator=torch_stream(seed, "gpt: start"),
    ).to(device)  # fmt: skip
    rng, lengths = stream(seed, "gpt: prompts"), stream(seed, "gpt: lengths")
    held = _prompts(world, L, ALPHA, test, stream(seed, "gpt: test"))
    marks = set(np.linspace(0, steps, 51).round().astype(int).tolist())
    found: dict[str, Any] = {"steps": sorted(marks)}
    found |= {name: [] for name in ("loss", "error", "attention", "spread", "close")}
    below = list(LEVELS)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        l = L if fixed else int(lengths.integers(1, L + 1))
        prompts = sample_prompts(patterns, world.trained, batch, l, ALPHA, rng)
        return as_sequence(prompts).to(device), torch.from_numpy(prompts.label).to(device)

    def measure(step: int) -> None:
        if step not in marks:
            return
        error, loss = _tested(model, held, device)
        found["error"].append(error)
        found["loss"].append(loss)
        found["attention"].append(_attention(model, held, device).tolist())
        found["spread"].append(_spread(model, patterns))
        passed = [level for level in below if loss < level]
        if passed or step == steps:
            close = _closely(model, world, seed, test, device)
            found["close"].append({"step": step, "below": passed} | close)
            below[:] = [level for level in below if level not in passed]

    optimiser = torch.optim.SGD(model.parameters())
    fit(model, draw, hinge, optimiser, lambda _: lr, steps, measure)
    return found


def hinge(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean of max(0, 1 - z F)."""
    return torch.relu(1 - label * output).mean()


def _prompts(world: World, l: int, alpha: float, n: int, rng: np.random.Generator) -> Prompts:
    return sample_prompts(world.patterns, world.held_out, n, l, alpha, rng)


@torch.no_grad()
def _tested(model: GPT, prompts: Prompts, device: str) -> tuple[float, float]:
    """Sign error and hinge loss."""
    output = model(as_sequence(prompts).to(device), last=True)[:, 0].cpu().double()
    margin = torch.from_numpy(prompts.label) * output
    return float((margin <= 0).double().mean()), float(torch.relu(1 - margin).mean())


@torch.no_grad()
def _attention(model: GPT, prompts: Prompts, device: str) -> Array:
    """Of the query on contexts with its pattern, among contexts: (depth, heads)."""
    maps = model.attention(as_sequence(prompts).to(device))[..., -1, :-1].cpu().numpy()
    share = (maps * prompts.same[:, None]).sum(axis=-1) / maps.sum(axis=-1)  # (depth, n, heads)
    return np.asarray(share.mean(axis=1))


def _spread(model: GPT, patterns: Patterns) -> list[float]:
    angles, weights = neuron_labels(model, patterns)
    plus, minus = (np.maximum(sign * weights, 0) for sign in (1, -1))
    means = [(angles * part).sum(axis=1) / part.sum(axis=1) for part in (minus, plus)]
    return np.rad2deg(means[0] - means[1]).tolist()  # type: ignore[no-any-return]


def _closely(model: GPT, world: World, seed: int, n: int, device: str) -> dict[str, Any]:
    """Error by S_1, by length and alpha', and the neurons' angles.

    Returns:
        unit, free: error and loss out of domain at 20 contexts, alpha' = 0.8, for each S_1 of SUMS;
            combinations of unit norm, and `near_one_pattern`.
        inside, outside: error for each alpha' of ALPHAS and length of LENGTHS, in domain and out of
            domain (unit norm, S_1 = 1).
        cut: in domain, error at 20 contexts if one head attends to all tokens alike, by block and
            head.
        angles: number of neurons by block, sign of their weight (-, +) and bin of the angle to q.
    """
    patterns, found = world.patterns, {}

    def combined(k: Array, l: int, alpha: float, rng: np.random.Generator) -> tuple[float, float]:
        tasks = all_tasks(len(k)) if len(k) == 3 else all_tasks(2)
        new = out_of_domain(patterns, k, rng)
        return _tested(model, sample_prompts(new, tasks, n, l, alpha, rng), device)

    for name in ("unit", "free"):
        rows = []
        for S1 in SUMS:
            rng, each = stream(seed, f"gpt: {name}"), []
            for _ in range(3):
                k = (
                    coefficients_with_sum(3, patterns.M1, S1, rng)
                    if name == "unit"
                    else near_one_pattern(patterns.M1, S1, rng)
                )
                each.append(combined(k, L, ALPHA, rng))
            rows.append(np.mean(each, axis=0).tolist())
        found[name] = rows
    inside, outside = [], []
    for alpha in ALPHAS:
        rng = stream(seed, "gpt: lengths tested")
        asked = [_prompts(world, l, alpha, n, rng) for l in LENGTHS]
        inside.append([_tested(model, prompts, device)[0] for prompts in asked])
        k = coefficients_with_sum(3, patterns.M1, 1.0, rng)
        outside.append([combined(k, l, alpha, rng)[0] for l in LENGTHS])
    angles, weights = neuron_labels(model, patterns)
    counts = [
        [np.histogram(angle[sign * weight > 0], BINS)[0].tolist() for sign in (-1, 1)]
        for angle, weight in zip(angles, weights, strict=True)
    ]
    held = _prompts(world, L, ALPHA, n, stream(seed, "gpt: cut"))
    cut = [
        [_tested(_without(model, block, head), held, device)[0] for head in range(2)]
        for block in range(len(counts))
    ]
    return found | {"inside": inside, "outside": outside, "cut": cut, "angles": counts}


@torch.no_grad()
def _without(model: GPT, block: int, head: int) -> GPT:
    """A copy in which one head attends to all tokens alike: its queries are 0."""
    changed = copy.deepcopy(model)
    maps = cast("list[Block]", changed.blocks)[block].attend.query_key_value
    size = maps.in_features // 2
    maps.weight[head * size : (head + 1) * size] = 0
    maps.bias[head * size : (head + 1) * size] = 0
    return changed
