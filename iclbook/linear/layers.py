"""The paper's layers in PyTorch, acting on the token matrix, mask and all.

Taught in the chapter linear/approximation-gap. All weights are float64.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from iclbook.checks import Array, as_array, as_count


def as_tensor(name: str, value: Tensor | ArrayLike, shape: tuple[int | None, ...]) -> Tensor:
    """`value` as a float64 tensor that carries its gradient on.

    Raises:
        ValueError: as `as_array`: wrong dtype, wrong shape, NaN or infinity.
    """
    tensor = torch.as_tensor(value)
    as_array(name, tensor.detach(), shape)
    return tensor.double()


def token_matrix(X: ArrayLike, y: ArrayLike, x: ArrayLike) -> Tensor:
    """The token matrix E of each prompt: labelled pairs as columns, then the query with label 0.

    Args:
        X: covariates, (n, M, d).
        y: labels, (n, M).
        x: queries, (n, d).

    Returns:
        float64 tensor, (n, d+1, M+1): rows 0..d-1 hold covariates, row d the labels.

    Raises:
        ValueError: shapes that do not fit each other, NaN, wrong dtype.

    Source: paper A, the prompt embedding.
    """
    X = as_array("X", X, (None, None, None))
    n, M, d = X.shape
    y, x = as_array("y", y, (n, M)), as_array("x", x, (n, d))
    inputs = np.concatenate([X, x[:, None]], axis=1)  # (n, M+1, d)
    labels = np.concatenate([y, np.zeros((n, 1))], axis=1)  # (n, M+1)
    return torch.from_numpy(np.concatenate([inputs.mT, labels[:, None]], axis=1))


def reduced_form(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(u, v, W) such that a layer with these weights predicts <u + W G v, x>; u = 0 for LSA.

    Args:
        weights: a layer's parameters by name, each (..., d+1, d+1); leading axes are runs.

    Returns:
        u (..., d), v (..., d+1) and W (..., d, d+1), differentiable in the weights.

    Source: derived in this book, the section on what the two layers compute.
    """
    W_K, W_Q, W_V, W_P = (weights[name] for name in ("W_K", "W_Q", "W_V", "W_P"))
    d = W_K.shape[-1] - 1
    if "W_1" in weights:
        row = weights["W_1"].mT @ weights["W_2"][..., -1:]  # last row of W_2^T W_1, (..., d+1, 1)
    else:
        row = torch.eye(d + 1, dtype=W_K.dtype)[:, -1:].expand(*W_K.shape[:-1], 1)
    v = W_V.mT @ (W_P @ row)  # (..., d+1, 1)
    return row[..., :d, 0], v[..., 0], (W_Q.mT @ W_K)[..., :d, :]


def reduced_predictions(
    u: Tensor, v: Tensor, W: Tensor, X: ArrayLike, y: ArrayLike, x: ArrayLike
) -> Tensor:
    """<u + W G v, x> for each prompt, at a cost of M d instead of the token matrix's M^2 d.

    Args:
        u: what the MLP adds, (d,).
        v: what the value path reads, (d+1,).
        W: the key-query block, (d, d+1).
        X: covariates, (n, M, d).
        y: labels, (n, M).
        x: queries, (n, d).

    Returns:
        Predicted labels of the queries, (n,), differentiable in u, v and W.

    Raises:
        ValueError: shapes that do not fit each other, NaN, wrong dtype.

    Source: derived in this book, the section on what the two layers compute.
    """
    X = as_tensor("X", X, (None, None, None))
    n, M, d = X.shape
    y, x = as_tensor("y", y, (n, M)), as_tensor("x", x, (n, d))
    u, v, W = as_tensor("u", u, (d,)), as_tensor("v", v, (d + 1,)), as_tensor("W", W, (d, d + 1))
    read = X @ v[:-1] + y * v[-1]  # v at each example, (n, M)
    s = (read[:, None] @ X)[:, 0] / M  # (n, d)
    r = (read * y).sum(dim=1, keepdim=True) / M  # (n, 1)
    return ((u + s @ W[:, :-1].T + r * W[:, -1]) * x).sum(dim=1)  # (n,)


def moment_matrix(X: ArrayLike, y: ArrayLike) -> Array:
    """G = Z^T Z / M of each prompt, (n, d+1, d+1), with the tokens (x_i, y_i) as rows of Z.

    Args:
        X: covariates, (n, M, d).
        y: labels, (n, M).

    Raises:
        ValueError: shapes that do not fit each other, NaN, wrong dtype.

    Source: derived in this book, the section on what the two layers compute.
    """
    X = as_array("X", X, (None, None, None))
    Z = np.concatenate([X, as_array("y", y, X.shape[:2])[:, :, None]], axis=2)  # (n, M, d+1)
    return np.asarray(Z.mT @ Z / X.shape[1])


class LinearSelfAttention(nn.Module):
    """Linear self-attention (LSA): the last entry of E + W_P^T W_V E mask E^T W_K^T W_Q E / M.

    The mask hides the query from the values; M is taken from E.

    Args:
        d: dimension of the covariates.
        generator: draws all weights from N(0, 1/(d+1)); without one they start at zero, to be set.

    Raises:
        ValueError: d < 1, or in the forward pass tokens that do not fit.

    Source: paper A, the class LSA.
    """

    def __init__(self, d: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.d = as_count("d", d)
        self.W_K, self.W_Q, self.W_V, self.W_P = (self._weight(generator) for _ in range(4))

    def _weight(self, generator: torch.Generator | None) -> nn.Parameter:
        size = (self.d + 1, self.d + 1)
        if generator is None:
            return nn.Parameter(torch.zeros(size, dtype=torch.float64))
        draw = torch.randn(size, generator=generator, dtype=torch.float64)
        return nn.Parameter(draw / (self.d + 1) ** 0.5)

    def attend(self, E: Tensor) -> Tensor:
        """The layer's full output, (n, d+1, M+1), for tokens E of that shape."""
        E = as_tensor("E", E, (None, self.d + 1, None))
        M = E.shape[2] - 1
        if M < 1:
            raise ValueError(f"E: got {M + 1} token, expected M + 1 with M at least 1")
        # Term by term as in the paper: this is the reference, reduced_predictions the fast way.
        visible = E.clone()
        visible[:, :, M] = 0.0  # E times the mask diag(I_M, 0), (n, d+1, M+1)
        scores = visible.mT @ self.W_K.T @ self.W_Q @ E  # (n, M+1, M+1)
        return E + self.W_P.T @ self.W_V @ visible @ scores / M  # (n, d+1, M+1)

    def forward(self, E: Tensor) -> Tensor:
        """Predicted labels of the queries, (n,), for tokens E of shape (n, d+1, M+1)."""
        return self.attend(E)[:, -1, -1]

    def reduced(self) -> tuple[Array, ...]:
        """(v, W) of the same function in its reduced form <W G v, x>: (d+1,) and (d, d+1).

        Source: derived in this book, the section on what the two layers compute.
        """
        return self._reduced_form()[1:]

    def _reduced_form(self) -> tuple[Array, ...]:
        form = reduced_form(dict(self.named_parameters()))
        return tuple(part.detach().numpy().copy() for part in form)


class LinearTransformerBlock(LinearSelfAttention):
    """Linear Transformer block (LTB): linear self-attention, then the linear MLP W_2^T W_1.

    Args and errors as for LinearSelfAttention.

    Source: paper A, the class LTB.
    """

    def __init__(self, d: int, generator: torch.Generator | None = None) -> None:
        super().__init__(d, generator)
        self.W_1, self.W_2 = self._weight(generator), self._weight(generator)

    def forward(self, E: Tensor) -> Tensor:
        """Predicted labels of the queries, (n,), for tokens E of shape (n, d+1, M+1)."""
        return (self.W_2.T @ self.W_1 @ self.attend(E))[:, -1, -1]

    def reduced(self) -> tuple[Array, ...]:
        """(u, v, W) of the same function in its reduced form <u + W G v, x>.

        Shapes (d,), (d+1,) and (d, d+1).

        Source: derived in this book, the section on what the two layers compute.
        """
        return self._reduced_form()

    @classmethod
    def from_gd_beta(cls, beta: ArrayLike, Gamma: ArrayLike) -> Self:
        """The block that takes one gradient step from `beta` (d,) with matrix step `Gamma` (d, d).

        Raises:
            ValueError: shapes that do not fit each other, NaN, wrong dtype.

        Source: paper A, every GD-beta is an LTB; these weights are this book's.
        """
        beta = as_array("beta", beta, (None,))
        d = len(beta)
        Gamma = as_array("Gamma", Gamma, (d, d))
        block = cls(d)
        with torch.no_grad():
            # u = beta from the MLP's last row; v = (-beta, 1) through the label coordinate alone.
            block.W_1.copy_(torch.eye(d + 1))
            block.W_2[:, d] = torch.tensor(np.append(beta, 1.0))
            block.W_P[d, d] = 1.0
            block.W_V[d] = torch.tensor(np.append(-beta, 1.0))
            block.W_K[:d, :d] = torch.eye(d)
            block.W_Q[:d, :d] = torch.tensor(Gamma.T.copy())
        return block

    def to_gd_beta(self) -> tuple[Array, Array]:
        """(beta, Gamma) that the weights imply, (d,) and (d, d); `from_gd_beta` undone.

        beta = u and Gamma = v_y A, with v_y the last entry of v and A the first d columns of W.
        The block is this GD-beta estimator exactly if v = v_y (-u, 1) and the last column of W is
        zero. No scaling of v against W, and none inside the weights, changes the result.

        Source: paper A, the optimal LTB is GD-beta; the reading is this book's.
        """
        u, v, W = self.reduced()
        return u, v[-1] * W[:, :-1]
