"""A small GPT-2 for both papers, in one file (chapters linear/gpt2-mlp, nonlinear/digits)."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from iclbook.checks import as_count


class GPT(nn.Module):
    """A decoder in the manner of GPT-2, from real vectors to one number at each position.

    Tokens are read in by a linear map, pass through `depth` blocks, and are read out by a linear
    map. A block is x + attention(norm(x)), then x + MLP(norm(x)). Position t sees 1..t only.
    Start: weights N(0, 0.02^2), those that write to the residual stream divided by
    sqrt(2 depth), biases 0, as in GPT-2. The read-in is N(0, 1 / inputs), as the tokens are real.

    Args:
        inputs: dimension of a token.
        length: greatest number of tokens.
        width: dimension of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of heads of attention in each.
        generator: draws the start.
        mlp: whether the blocks have an MLP: width -> 4 width, GELU, and back.
        softmax: whether attention is softmax, or linear: scores over the number of visible tokens.
        positions: whether a learnt vector is added at each position.
        bias: whether linear maps and norms have biases.
        own: whether a token reaches its own output. If not, attention hides it from itself (but
            for the first, which sees nothing else) and what was read in is taken away before it is
            read out. Then, as in the linear layer of paper A, without MLP it acts through its
            queries alone.
        dtype: of all weights.

    Raises:
        ValueError: a count below 1, a width that is no multiple of `heads`.

    Source: Radford et al. (2019); papers A (Table 1) and B (Figures 3, 6 and 7) train such models.
    """

    def __init__(
        self,
        inputs: int,
        length: int,
        *,
        width: int,
        depth: int,
        heads: int,
        generator: torch.Generator,
        mlp: bool = True,
        softmax: bool = True,
        positions: bool = True,
        bias: bool = True,
        own: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.own = own
        self.inputs, self.length = as_count("inputs", inputs), as_count("length", length)
        width, depth = as_count("width", width), as_count("depth", depth)
        if width % as_count("heads", heads):
            raise ValueError(f"width: got {width} with {heads} heads, expected a multiple")
        self.read_in = nn.Linear(inputs, width, bias)
        self.positions = nn.Parameter(torch.zeros(length, width), requires_grad=positions)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp, softmax, bias, own) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        self.read_out = nn.Linear(width, 1, bias)
        self.to(dtype)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name == "positions" and not positions:
                    continue
                if weight.ndim == 2:  # drawn in float64, so that every dtype starts alike
                    size = 0.02 / math.sqrt(2 * depth) if name.endswith("write.weight") else 0.02
                    size = inputs**-0.5 if name == "read_in.weight" else size
                    draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                    weight.copy_(size * draw)
                elif name.endswith("bias"):
                    weight.zero_()

    def forward(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Outputs of tokens (n, t, inputs) at all positions, (n, t), or at the last one, (n, 1)."""
        start = x = self._read(tokens)  # (n, t, width)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, last)  # the last block has nothing to compute for others
        x = x if self.own else x - start[:, -x.shape[1] :]
        outputs: Tensor = self.read_out(self.norm(x))  # (n, t or 1, 1)
        return outputs[:, :, 0]

    def attention(self, tokens: Tensor) -> Tensor:
        """Attention of each position (row) on each (column): (depth, n, heads, t, t)."""
        x, maps = self._read(tokens), []
        for block in cast("list[Block]", self.blocks):
            maps.append(block.attend.weights(block.norm_1(x)))
            x = block(x)
        return torch.stack(maps)

    def _read(self, tokens: Tensor) -> Tensor:
        n, t, d = (*tokens.shape, 0, 0, 0)[:3]
        if tokens.ndim != 3 or d != self.inputs or not 1 <= t <= self.length or n < 1:
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)}, expected (n, t, {self.inputs}) with "
                f"t up to {self.length}"
            )
        read: Tensor = self.read_in(tokens) + self.positions[:t]
        return read


class Attention(nn.Module):
    """Causal attention of several heads, side by side, and the map that writes what they saw."""

    def __init__(self, width: int, heads: int, softmax: bool, bias: bool, own: bool) -> None:
        super().__init__()
        self.heads, self.softmax, self.own = heads, softmax, own
        self.query_key_value = nn.Linear(width, 3 * width, bias)
        self.write = nn.Linear(width, width, bias)

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """What is seen at all positions, or at the last: (n, t, width) -> (n, t or 1, width)."""
        q, k, v = self._split(x)
        q = q[:, :, -1:] if last else q
        if self.softmax and self.own:
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=not last)
        else:
            seen = self._weights(q, k) @ v  # (n, heads, t, t) @ (n, heads, t, head)
        written: Tensor = self.write(seen.transpose(1, 2).flatten(2))  # heads side by side
        return written

    def weights(self, x: Tensor) -> Tensor:
        """What `forward` weighs the values with: (n, t, width) -> (n, heads, t, t)."""
        q, k, _ = self._split(x)
        return self._weights(q, k)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (n, heads, t, head) each."""
        n, t, width = x.shape
        parts = self.query_key_value(x).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention of the last positions, (n, heads, s, head), on all, (n, heads, t, head)."""
        t = k.shape[2]
        position = torch.arange(t, device=k.device)
        visible = position[None] <= position[:, None] - (0 if self.own else 1)  # (t, t)
        visible = (visible | (position[:, None] + position == 0))[-q.shape[2] :]  # (s, t)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.softmax:
            return scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
        return scores * visible / visible.sum(dim=1, keepdim=True)


class Block(nn.Module):
    """Attention, then the MLP if there is one; each adds to the stream."""

    def __init__(
        self, width: int, heads: int, mlp: bool, softmax: bool, bias: bool, own: bool
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, bias=bias)
        self.attend = Attention(width, heads, softmax, bias, own)
        self.mlp = mlp
        if mlp:
            self.norm_2 = nn.LayerNorm(width, bias=bias)
            self.grow = nn.Linear(width, 4 * width, bias)
            self.write = nn.Linear(4 * width, width, bias)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """(n, t, width) -> (n, t, width), or (n, 1, width) at the last position."""
        seen = self.attend(self.norm_1(x), last)
        x = x[:, -seen.shape[1] :] + seen
        if self.mlp:
            x = x + self.write(functional.gelu(self.grow(self.norm_2(x))))
        return x


def fit(
    model: GPT,
    batch: Callable[[], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    rate: Callable[[int], float],
    steps: int,
    measure: Callable[[int], Any],
) -> None:
    """Train a model in place on the answer at the last position, fresh prompts at each step.

    Args:
        model: left trained.
        batch: draws tokens (n, t, inputs) and targets (n,).
        loss: a number, of outputs (n,) and targets (n,).
        optimiser: of the model's parameters.
        rate: step size at each step, counted from 0.
        steps: number of steps, at least 1.
        measure: called with the number of steps taken, before each step and at the end.

    Raises:
        ValueError: steps below 1.
        FloatingPointError: the loss is no longer finite; says at which step.
    """
    for step in range(as_count("steps", steps)):
        measure(step)
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        tokens, target = batch()
        value = loss(model(tokens, last=True)[:, 0], target)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"training diverged: loss {value.item()} at step {step}")
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    measure(steps)
