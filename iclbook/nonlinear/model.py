"""The one-layer Transformer of paper B, written as in the paper (chapter nonlinear/training)."""

import numpy as np
import torch
from torch import Tensor, nn

from iclbook.checks import as_count, as_number, as_positive

Tokens = Tensor | np.ndarray


class OneLayerTransformer(nn.Module):
    """F(P) = a^T ReLU(W_O sum_i W_V p_i attn_i), attn = softmax_i((W_K p_i)^T W_Q p_query).

    The softmax runs over the contexts only. The start is the paper's: W_V is delta on its diagonal,
    W_K and W_Q are delta on the first dX diagonal entries, zero elsewhere, W_O is Gaussian.

    Args:
        dX: dimension of an input.
        dY: dimension of an embedded label.
        m: number of neurons.
        generator: draws W_O.
        delta: size of the start of W_Q, W_K and W_V, positive; the paper asks for 0.2 at most.
        xi: standard deviation of the start of W_O, at least 0.
        dtype: of all weights. float32 trains twice as fast; float64 repeats on other machines.

    Attributes:
        W_Q, W_K, W_V: (dX + dY, dX + dY).
        W_O: (m, dX + dY), one row per neuron.
        a: output weights, (m,), fixed: +1/sqrt(m) for the first half of the neurons, -1/sqrt(m)
            for the rest. The rows of W_O are drawn alike, so the order of the signs is no choice.

    Raises:
        ValueError: a count below 1, delta not positive, xi negative, or in the forward pass tokens
            that do not fit or are not finite.

    Source: paper B, the learning model and its initialisation.
    """

    a: Tensor

    def __init__(
        self,
        dX: int,
        dY: int,
        m: int,
        generator: torch.Generator,
        delta: float = 0.2,
        xi: float = 0.01,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.dX, self.dY, self.m = as_count("dX", dX), as_count("dY", dY), as_count("m", m)
        delta, xi = as_positive("delta", delta), as_number("xi", xi, least=0.0)
        d = self.dX + self.dY
        inputs = torch.arange(d) < self.dX
        self.W_Q = nn.Parameter(delta * torch.diag(inputs).to(dtype))  # (d, d)
        self.W_K = nn.Parameter(delta * torch.diag(inputs).to(dtype))  # (d, d)
        self.W_V = nn.Parameter(delta * torch.eye(d, dtype=dtype))  # (d, d)
        # Drawn in float64 whatever the dtype, so that both start from the same weights.
        draw = torch.randn(self.m, d, generator=generator, dtype=torch.float64)
        self.W_O = nn.Parameter((xi * draw).to(dtype))  # (m, d)
        signs = torch.where(torch.arange(self.m) < (self.m + 1) // 2, 1.0, -1.0)
        self.register_buffer("a", signs.to(dtype) / self.m**0.5)  # (m,)

    def attention(self, tokens: Tokens, query: Tokens) -> Tensor:
        """Attention of each query on its contexts, (n, l), rows summing to 1.

        Args:
            tokens: contexts, (n, l, dX + dY), a tensor or an array of any float dtype, finite.
            query: queries, (n, dX + dY).
        """
        tokens, query = self._checked(tokens, query)
        keys = tokens @ self.W_K.T  # (n, l, d)
        asked = query @ self.W_Q.T  # (n, d)
        scores = (keys @ asked[:, :, None])[:, :, 0]  # (n, l, d) @ (n, d, 1) -> (n, l)
        return torch.softmax(scores, dim=1)  # (n, l)

    def forward(self, tokens: Tokens, query: Tokens) -> Tensor:
        """F(P) of each prompt, (n,); its sign is the predicted label. Arguments as `attention`."""
        attention = self.attention(tokens, query)  # (n, l)
        values = torch.as_tensor(tokens, dtype=self.a.dtype) @ self.W_V.T  # (n, l, d)
        pooled = (attention[:, None, :] @ values)[:, 0]  # (n, 1, l) @ (n, l, d) -> (n, d)
        hidden = torch.relu(pooled @ self.W_O.T)  # (n, d) @ (d, m) -> (n, m)
        return hidden @ self.a  # (n,)

    def _checked(self, tokens: Tokens, query: Tokens) -> tuple[Tensor, Tensor]:
        tokens = torch.as_tensor(tokens, dtype=self.a.dtype)
        query = torch.as_tensor(query, dtype=self.a.dtype)
        n, l, d = (*tokens.shape, 0, 0, 0)[:3]
        if tokens.ndim != 3 or not l or d != self.dX + self.dY or query.shape != (n, d):
            raise ValueError(
                f"tokens, query: got shapes {tuple(tokens.shape)} and {tuple(query.shape)}, "
                f"expected (n, l, {self.dX + self.dY}) and (n, {self.dX + self.dY})"
            )
        if not (torch.isfinite(tokens).all() and torch.isfinite(query).all()):
            raise ValueError("tokens, query: got NaN or infinity, expected finite numbers")
        return tokens, query


def hinge_loss(output: Tensor, label: Tokens) -> Tensor:
    """Mean over prompts of max(0, 1 - z F(P)).

    Args:
        output: F(P), (n,).
        label: z, (n,), +1 or -1 each.

    Raises:
        ValueError: labels of another shape, or with other values.
    """
    label = torch.as_tensor(label, dtype=output.dtype)
    if label.shape != output.shape or (label.abs() != 1).any():
        raise ValueError(f"label: got {label}, expected +1 or -1 of shape {tuple(output.shape)}")
    return torch.relu(1 - label * output).mean()
