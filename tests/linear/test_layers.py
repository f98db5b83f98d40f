"""The layers on token matrices, against the paper's formula written out in NumPy."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from linear_tasks import random_task

from iclbook.checks import Array
from iclbook.linear import (
    LinearSelfAttention,
    LinearTransformerBlock,
    Prompts,
    gd_beta_estimate,
    moment_matrix,
    reduced_form,
    reduced_predictions,
    token_matrix,
)

SIZES = [(1, 1), (3, 2), (2, 7)]  # (d, M)
KINDS = [LinearSelfAttention, LinearTransformerBlock]


def prompts_of(d: int, M: int, n: int = 6) -> Prompts:
    rng = np.random.default_rng([d, M])
    return random_task(d, M, rng).sample(n, rng)


def make(kind: type[LinearSelfAttention], d: int, seed: int = 0) -> LinearSelfAttention:
    return kind(d, torch.Generator().manual_seed(seed))


def predict(layer: LinearSelfAttention, X: Array, y: Array, x: Array) -> Array:
    with torch.no_grad():
        return layer(token_matrix(X, y, x)).numpy()


def reference(layer: LinearSelfAttention, E: Array) -> Array:
    """E + W_P^T W_V E mask E^T W_K^T W_Q E / M for one prompt, then W_2^T W_1 for the block."""
    w = {name: weight.detach().numpy() for name, weight in layer.named_parameters()}
    M = E.shape[1] - 1
    mask = np.diag(np.append(np.ones(M), 0.0))
    scores = E.T @ w["W_K"].T @ w["W_Q"] @ E
    out = E + w["W_P"].T @ w["W_V"] @ E @ mask @ scores / M
    return w["W_2"].T @ w["W_1"] @ out if "W_1" in w else out


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_token_matrix_holds_pairs_then_the_query(d: int, M: int) -> None:
    p = prompts_of(d, M)
    E = token_matrix(p.X, p.y, p.x)
    assert E.dtype == torch.float64
    for k, tokens in enumerate(E.numpy()):
        query = np.append(p.x[k], 0.0)[:, None]
        expected = np.hstack([np.vstack([p.X[k].T, p.y[k]]), query])
        np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize(("d", "M"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_the_papers_formula(kind: type[LinearSelfAttention], d: int, M: int) -> None:
    layer, p = make(kind, d), prompts_of(d, M)
    E = token_matrix(p.X, p.y, p.x)
    expected = [reference(layer, tokens)[-1, -1] for tokens in E.numpy()]
    np.testing.assert_allclose(predict(layer, p.X, p.y, p.x), expected, rtol=1e-12, atol=1e-14)
    attended = [reference(attention_only(layer), tokens) for tokens in E.numpy()]
    np.testing.assert_allclose(layer.attend(E).detach().numpy(), attended, rtol=1e-11, atol=1e-13)


def attention_only(layer: LinearSelfAttention) -> LinearSelfAttention:
    """The attention of a block, as a layer of its own."""
    attention = LinearSelfAttention(layer.d)
    own = {name: w for name, w in layer.state_dict().items() if name in attention.state_dict()}
    attention.load_state_dict(own)
    return attention


@pytest.mark.parametrize(("d", "M"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reduced_form_is_the_same_function(
    kind: type[LinearSelfAttention], d: int, M: int
) -> None:
    """<u + W G v, x> with G = [[S, s], [s^T, r]] of X^T X, X^T y and y^T y over M."""
    layer, p = make(kind, d), prompts_of(d, M)
    *u, v, W = layer.reduced()
    u = u[0] if u else np.zeros(d)
    assert (u.shape, v.shape, W.shape) == ((d,), (d + 1,), (d, d + 1))
    for X, y, x, prediction in zip(p.X, p.y, p.x, predict(layer, p.X, p.y, p.x), strict=True):
        tokens = np.column_stack([X, y])
        G = tokens.T @ tokens / M
        assert (u + W @ G @ v) @ x == pytest.approx(prediction, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_predictions_are_the_layer_gradients_too(kind: type[LinearSelfAttention]) -> None:
    fast, slow = make(kind, 3), make(kind, 3)
    p = prompts_of(3, 5)
    form = reduced_form(dict(fast.named_parameters()))
    found, expected = reduced_predictions(*form, p.X, p.y, p.x), slow(token_matrix(p.X, p.y, p.x))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    for predictions in (found, expected):
        predictions.square().sum().backward()
    for weight, same in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, same.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reduced_form_of_several_runs_is_that_of_each(kind: type[LinearSelfAttention]) -> None:
    layers = [make(kind, 3, seed) for seed in range(4)]
    stacked = {
        name: torch.stack([layer.get_parameter(name) for layer in layers])
        for name, _ in layers[0].named_parameters()
    }
    for k, layer in enumerate(layers):
        alone = reduced_form(dict(layer.named_parameters()))
        for part, same in zip(reduced_form(stacked), alone, strict=True):
            torch.testing.assert_close(part[k], same, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_the_moment_matrix_is_the_masked_product_of_the_tokens(d: int, M: int) -> None:
    """G = E mask E^T / M with mask = diag(1, ..., 1, 0)."""
    p = prompts_of(d, M)
    E = token_matrix(p.X, p.y, p.x).numpy()
    expected = E @ np.diag([1.0] * M + [0.0]) @ np.swapaxes(E, 1, 2) / M
    np.testing.assert_allclose(moment_matrix(p.X, p.y), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("d", "M"), SIZES)
def test_a_block_made_from_gd_beta_takes_the_gradient_step(d: int, M: int) -> None:
    """<beta - Gamma X^T (X beta - y) / M, x>."""
    rng = np.random.default_rng(3)
    beta, Gamma = rng.standard_normal(d), rng.standard_normal((d, d))
    block, p = LinearTransformerBlock.from_gd_beta(beta, Gamma), prompts_of(d, M)
    expected = np.sum(gd_beta_estimate(beta, Gamma, p.X, p.y) * p.x, axis=1)
    np.testing.assert_allclose(predict(block, p.X, p.y, p.x), expected, rtol=1e-12, atol=1e-14)
    u, v, W = block.reduced()
    np.testing.assert_array_equal(u, beta)
    np.testing.assert_array_equal(v, np.append(-beta, 1.0))
    np.testing.assert_array_equal(W, np.column_stack([Gamma, np.zeros(d)]))
    for implied, given in zip(block.to_gd_beta(), (beta, Gamma), strict=True):
        np.testing.assert_array_equal(implied, given)


def test_what_a_block_implies_does_not_depend_on_how_its_weights_share_a_factor() -> None:
    rng = np.random.default_rng(5)
    beta, Gamma = rng.standard_normal(3), rng.standard_normal((3, 3))
    block = LinearTransformerBlock.from_gd_beta(beta, Gamma)
    mix = torch.tensor(rng.standard_normal((4, 4)))
    with torch.no_grad():
        block.W_V *= -3.0  # v
        block.W_K /= -3.0  # W
        block.W_K.copy_(mix @ block.W_K)
        block.W_Q.copy_(torch.linalg.inv(mix).T @ block.W_Q)
    for implied, given in zip(block.to_gd_beta(), (beta, Gamma), strict=True):
        np.testing.assert_allclose(implied, given, rtol=1e-12)


# --- what a layer may look at ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_keeps_the_query_out_of_the_values(kind: type[LinearSelfAttention]) -> None:
    """Another query changes no context column, and its own prediction only linearly."""
    layer, p = make(kind, 3), prompts_of(3, 4)
    other = np.random.default_rng(4).standard_normal(p.x.shape)
    first = layer.attend(token_matrix(p.X, p.y, p.x)).detach().numpy()
    second = layer.attend(token_matrix(p.X, p.y, other)).detach().numpy()
    np.testing.assert_array_equal(first[:, :, :-1], second[:, :, :-1])
    sum_of_both = predict(layer, p.X, p.y, p.x) + 2.0 * predict(layer, p.X, p.y, other)
    together = predict(layer, p.X, p.y, p.x + 2.0 * other)
    np.testing.assert_allclose(together, sum_of_both, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_context_does_not_matter(kind: type[LinearSelfAttention]) -> None:
    layer, p = make(kind, 3), prompts_of(3, 5)
    order = np.random.default_rng(5).permutation(5)
    shuffled = predict(layer, p.X[:, order], p.y[:, order], p.x)
    np.testing.assert_allclose(shuffled, predict(layer, p.X, p.y, p.x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_batch_do_not_mix_and_repeated_contexts_weigh_the_same(
    kind: type[LinearSelfAttention],
) -> None:
    """Averages over M: a context given twice is the same context."""
    layer, p = make(kind, 2), prompts_of(2, 3)
    base = predict(layer, p.X, p.y, p.x)
    alone = [predict(layer, p.X[k : k + 1], p.y[k : k + 1], p.x[k : k + 1])[0] for k in range(6)]
    np.testing.assert_allclose(alone, base, rtol=1e-12, atol=1e-14)
    twice = predict(layer, np.tile(p.X, (1, 2, 1)), np.tile(p.y, (1, 2)), p.x)
    np.testing.assert_allclose(twice, base, rtol=1e-12, atol=1e-14)


def test_without_its_value_path_only_the_block_sees_the_query() -> None:
    """W_V = 0: the LSA layer predicts 0, the block <u, x>."""
    p = prompts_of(2, 3)
    attention, block = (make(kind, 2) for kind in KINDS)
    with torch.no_grad():
        attention.W_V.zero_()
        block.W_V.zero_()
    np.testing.assert_array_equal(predict(attention, p.X, p.y, p.x), 0.0)
    expected = p.x @ block.reduced()[0]
    np.testing.assert_allclose(predict(block, p.X, p.y, p.x), expected, rtol=1e-13)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_drawn_from_the_generator_with_variance_one_over_d_plus_one(
    kind: type[LinearSelfAttention],
) -> None:
    first, second, other = make(kind, 99, 1), make(kind, 99, 1), make(kind, 99, 2)
    weights = list(first.parameters())
    assert len(weights) == (4 if kind is LinearSelfAttention else 6)
    for weight, same, different in zip(
        weights, second.parameters(), other.parameters(), strict=True
    ):
        assert weight.dtype == torch.float64
        assert weight.requires_grad
        assert torch.equal(weight, same)
        assert not torch.equal(weight, different)
        # 10^4 entries: mean ~ N(0, 1/10^6), variance 1/100 with relative deviation sqrt(2)/100.
        assert abs(weight.mean().item()) < 4e-3
        assert weight.var().item() == pytest.approx(0.01, rel=0.06)
    flat = torch.stack([weight.flatten() for weight in weights])
    assert (torch.corrcoef(flat) - torch.eye(len(weights))).abs().max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_generator_weights_are_zero(kind: type[LinearSelfAttention]) -> None:
    assert all(torch.count_nonzero(weight) == 0 for weight in kind(3).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_loss_are_those_of_finite_differences(
    kind: type[LinearSelfAttention],
) -> None:
    layer, p = make(kind, 2), prompts_of(2, 3)
    E, target = token_matrix(p.X, p.y, p.x), torch.tensor(p.target)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def loss(*given: torch.Tensor) -> torch.Tensor:
        called = torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (E,))
        return (called - target).square().mean()

    assert torch.autograd.gradcheck(loss, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reduced_form_is_a_copy(kind: type[LinearSelfAttention]) -> None:
    layer = make(kind, 2)
    for part in layer.reduced():
        assert part.dtype == np.float64
        part[:] = 0.0
    assert all(np.abs(part).min() > 0 for part in layer.reduced())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("X", np.zeros((4, 3)), "got shape (4, 3), expected (any, any, any)"),
        ("X", np.full((4, 3, 2), np.nan), "got 24 entries that are NaN or infinite"),
        ("X", np.zeros((4, 3, 2), np.float32), "got dtype float32, expected float64"),
        ("X", np.zeros((4, 0, 2)), "got shape (4, 0, 2), expected (any, any, any)"),
        ("y", np.zeros((4, 2)), "got shape (4, 2), expected (4, 3)"),
        ("y", np.zeros((4, 3), complex), "got dtype complex128, expected float64"),
        ("x", np.zeros((4, 3)), "got shape (4, 3), expected (4, 2)"),
        ("x", np.full((4, 2), np.inf), "got 8 entries that are NaN or infinite"),
        ("x", "query", "got dtype <U5, expected float64"),
    ],
)
def test_bad_prompts_are_refused(name: str, bad: Any, message: str) -> None:  # noqa: ANN401
    prompt = {"X": np.zeros((4, 3, 2)), "y": np.zeros((4, 3)), "x": np.zeros((4, 2)), name: bad}
    with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
        token_matrix(**prompt)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [0, -1, 2.0, True, "2", None])
def test_a_bad_dimension_is_refused(kind: Callable[[Any], object], d: object) -> None:
    with pytest.raises(ValueError, match=r"^d: got .*, expected an integer of at least 1"):
        kind(d)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 4), (5, 4, 4), (5, 2, 4), (5, 3, 4, 1)])
def test_tokens_that_do_not_fit_are_refused(
    kind: type[LinearSelfAttention], shape: tuple[int, ...]
) -> None:
    expected = re.escape(f"E: got shape {shape}, expected (any, 3, any)")
    with pytest.raises(ValueError, match="^" + expected):
        make(kind, 2)(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_without_examples_is_refused(kind: type[LinearSelfAttention]) -> None:
    with pytest.raises(ValueError, match=r"^E: got 1 token, expected M \+ 1 with M at least 1"):
        make(kind, 2)(torch.zeros(5, 3, 1, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_not_numbers_are_refused(kind: type[LinearSelfAttention]) -> None:
    with pytest.raises(ValueError, match=r"^E: got 60 entries that are NaN or infinite"):
        make(kind, 2)(torch.full((5, 3, 4), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_single_precision_are_refused(kind: type[LinearSelfAttention]) -> None:
    with pytest.raises(ValueError, match=r"^E: got dtype float32, expected float64"):
        make(kind, 2)(torch.zeros(5, 3, 4))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("u", torch.zeros(3, dtype=torch.float64), "got shape (3,), expected (2)"),
        ("v", torch.zeros(3), "got dtype float32, expected float64"),
        ("W", torch.full((2, 3), torch.nan, dtype=torch.float64), "got 6 entries that are NaN"),
        ("X", np.zeros((4, 3)), "got shape (4, 3), expected (any, any, any)"),
        ("y", np.full((4, 3), np.nan), "got 12 entries that are NaN or infinite"),
    ],
)
def test_bad_arguments_of_reduced_predictions_are_refused(
    name: str,
    bad: Any,  # noqa: ANN401
    message: str,
) -> None:
    shapes = {"u": (2,), "v": (3,), "W": (2, 3), "X": (4, 3, 2), "y": (4, 3), "x": (4, 2)}
    given = {key: torch.ones(shape, dtype=torch.float64) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=f"^{name}: " + re.escape(message)):
        reduced_predictions(**{**given, name: bad})


@pytest.mark.parametrize(
    ("beta", "Gamma", "message"),
    [
        (1.0, np.eye(1), r"^beta: got shape \(\), expected \(any\)"),
        ([1.0, np.nan], np.eye(2), r"^beta: got 1 entries that are NaN or infinite"),
        ([1.0, 2.0], np.eye(3), r"^Gamma: got shape \(3, 3\), expected \(2, 2\)"),
        ([1.0, 2.0], np.eye(2, dtype=np.float32), r"^Gamma: got dtype float32, expected float64"),
    ],
)
def test_bad_gd_beta_weights_are_refused(
    beta: Any,  # noqa: ANN401
    Gamma: Array,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        LinearTransformerBlock.from_gd_beta(beta, Gamma)
