"""The model against NumPy and torch's attention."""

import numpy as np
import pytest
import torch
from nonlinear_models import DX, DY, NEURONS, PATTERNS, make, prompts, rng
from scipy.stats import ortho_group
from torch.nn.functional import scaled_dot_product_attention

from iclbook.nonlinear import OneLayerTransformer, Patterns, evaluate, hinge_loss


def numpy_forward(model: OneLayerTransformer, tokens: np.ndarray, query: np.ndarray) -> np.ndarray:
    W_Q, W_K, W_V, W_O = (
        getattr(model, name).detach().numpy() for name in ("W_Q", "W_K", "W_V", "W_O")
    )
    outputs = []
    for contexts, asked in zip(tokens, query, strict=True):
        scores = np.array([(W_K @ p) @ (W_Q @ asked) for p in contexts])
        attention = np.exp(scores) / np.exp(scores).sum()
        pooled = sum(weight * (W_V @ p) for weight, p in zip(attention, contexts, strict=True))
        outputs.append(model.a.numpy() @ np.maximum(W_O @ pooled, 0))
    return np.array(outputs)


def test_the_model_is_the_formula_of_the_paper() -> None:
    model, P = make(), prompts()
    expected = numpy_forward(model, P.tokens, P.query)
    np.testing.assert_allclose(model(P.tokens, P.query).detach(), expected, atol=1e-12)
    assert np.ptp(expected) > 0.1


def test_the_attention_is_that_of_torch() -> None:
    model, P = make(), prompts()
    tokens, query = torch.tensor(P.tokens), torch.tensor(P.query)[:, None]
    values = scaled_dot_product_attention(
        query @ model.W_Q.T, tokens @ model.W_K.T, tokens @ model.W_V.T, scale=1.0
    )
    pooled = model.attention(P.tokens, P.query)[:, None] @ (tokens @ model.W_V.T)
    torch.testing.assert_close(pooled, values)
    sums = model.attention(P.tokens, P.query).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_start_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    model = OneLayerTransformer(40, 10, 300, generator, delta=0.15, xi=0.02)
    inputs = torch.diag((torch.arange(50) < 40).double())
    torch.testing.assert_close(model.W_Q.detach(), 0.15 * inputs)
    torch.testing.assert_close(model.W_K.detach(), 0.15 * inputs)
    torch.testing.assert_close(model.W_V.detach(), 0.15 * torch.eye(50).double())
    assert model.W_O.std().item() == pytest.approx(0.02, rel=0.03)
    signs = torch.tensor([1.0] * 150 + [-1.0] * 150).double()
    torch.testing.assert_close(model.a, signs / 300**0.5)
    assert "a" not in dict(model.named_parameters())


def test_float32_starts_from_the_same_weights_and_says_nearly_the_same() -> None:
    double, single, P = make(), make(dtype=torch.float32), prompts()
    output = single(P.tokens, P.query)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), double(P.tokens, P.query), rtol=1e-4, atol=1e-5)


def test_the_output_does_not_know_in_which_order_contexts_stand() -> None:
    model, P = make(), prompts()
    order = rng().permutation(6)
    torch.testing.assert_close(
        model(P.tokens[:, order], P.query), model(P.tokens, P.query), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(
        model.attention(P.tokens[:, order], P.query), model.attention(P.tokens, P.query)[:, order]
    )


def test_rotating_patterns_and_weights_together_changes_nothing() -> None:
    model, P = make(), prompts()
    rotation = np.eye(DX + DY)
    rotation[:DX, :DX] = ortho_group.rvs(DX, random_state=rng())
    turned_patterns = Patterns(
        PATTERNS.mu @ rotation[:DX, :DX].T, PATTERNS.nu @ rotation[:DX, :DX].T, PATTERNS.q
    )
    turned = make()
    with torch.no_grad():
        for weight in (turned.W_Q, turned.W_K, turned.W_V):
            weight.copy_(weight @ torch.tensor(rotation).T)
    after = prompts(patterns=turned_patterns)
    torch.testing.assert_close(turned(after.tokens, after.query), model(P.tokens, P.query))


def test_the_hinge_loss_is_zero_from_margin_one_on() -> None:
    output = torch.tensor([2.0, 0.5, -1.0, -3.0])
    label = np.array([1, 1, 1, -1], dtype=np.int8)
    assert hinge_loss(output, label).item() == pytest.approx((0 + 0.5 + 2 + 0) / 4)


def test_wrong_shapes_and_sizes_are_refused() -> None:
    model, P = make(), prompts()
    for tokens, query in [
        (P.tokens[:, :, 1:], P.query),
        (P.tokens[:, :0], P.query),
        (P.tokens, P.query[1:]),
    ]:
        with pytest.raises(ValueError, match="tokens, query: got shapes"):
            model(tokens, query)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="delta: got 0"):
        OneLayerTransformer(DX, DY, NEURONS, generator, delta=0)
    with pytest.raises(ValueError, match="m: got 0"):
        OneLayerTransformer(DX, DY, 0, generator)
    with pytest.raises(ValueError, match="xi: got -1"):
        OneLayerTransformer(DX, DY, 2, generator, xi=-1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    model, P = make(), prompts()
    for name in ("tokens", "query"):
        given = {"tokens": P.tokens.copy(), "query": P.query.copy()}
        given[name].flat[7] = bad
        for use in (model, model.attention):
            with pytest.raises(ValueError, match="got NaN or infinity"):
                use(**given)


@pytest.mark.parametrize("label", [[1.0, np.nan], [1, 0], [1, 2], [1], [[1, -1]]])
def test_labels_that_are_not_plus_or_minus_one_are_refused(label: list) -> None:
    with pytest.raises(ValueError, match=r"label: got .*expected \+1 or -1 of shape \(2,\)"):
        hinge_loss(torch.tensor([0.5, 0.5]), np.array(label))


def test_numbers_may_come_as_arrays_and_tensors_without_dimensions() -> None:
    one = OneLayerTransformer(
        np.array(DX), torch.tensor(DY), 2, torch.Generator().manual_seed(0), delta=np.array(1)
    )
    two = OneLayerTransformer(DX, DY, 2, torch.Generator().manual_seed(0), delta=1.0)
    torch.testing.assert_close(one.state_dict(), two.state_dict())


def test_evaluate_is_the_model_on_the_tokens() -> None:
    model, P = make(), prompts()
    found = evaluate(model, P)
    output = model(P.tokens, P.query).detach()
    attention = model.attention(P.tokens, P.query).detach().numpy()
    np.testing.assert_allclose(found.output, output, atol=1e-12)
    np.testing.assert_allclose(found.margin, output.numpy() * P.label, atol=1e-12)
    np.testing.assert_allclose(found.attention, attention, atol=1e-12)
    assert found.loss == pytest.approx(hinge_loss(output, P.label).item())
    assert found.error == pytest.approx((np.sign(output.numpy()) != P.label).mean())
    assert found.same == pytest.approx((attention * P.same).sum(axis=1).mean())
