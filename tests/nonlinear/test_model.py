"""The model against NumPy and torch's attention; pruning and the mechanism against the formulas."""

import re

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch.nn.functional import scaled_dot_product_attention

from iclbook.nonlinear import (
    OneLayerTransformer,
    Patterns,
    Prompts,
    all_tasks,
    evaluate,
    growth,
    hinge_loss,
    neuron_norms,
    neurons,
    orthogonal_patterns,
    prune,
    sample_prompts,
    shrink,
)

M1, M2, DX, DY, NEURONS = 4, 5, 11, 3, 10


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


PATTERNS = orthogonal_patterns(M1, M2, DX, DY, 1.5, rng(9))


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> OneLayerTransformer:
    """A model far from its start, with nothing special about its weights."""
    generator = torch.Generator().manual_seed(seed)
    model = OneLayerTransformer(DX, DY, NEURONS, generator, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += (0.3 * draw).to(dtype)
    return model


def prompts(n: int = 40, l: int = 6, patterns: Patterns = PATTERNS) -> Prompts:
    return sample_prompts(patterns, all_tasks(M1), n, l, 0.7, rng(1))


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
        with pytest.raises(ValueError, match=r"(tokens|query): got shape"):
            model(tokens, query)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="delta: got 0"):
        OneLayerTransformer(DX, DY, NEURONS, generator, delta=0)
    with pytest.raises(ValueError, match="m: got 0"):
        OneLayerTransformer(DX, DY, 0, generator)
    with pytest.raises(ValueError, match="xi: got -1"):
        OneLayerTransformer(DX, DY, 2, generator, xi=-1.0)


def test_evaluate_is_the_model_on_the_tokens() -> None:
    model, P = make(), prompts()
    found = evaluate(model, PATTERNS, P.indices)
    output = model(P.tokens, P.query).detach()
    attention = model.attention(P.tokens, P.query).detach().numpy()
    np.testing.assert_allclose(found.output, output, atol=1e-12)
    np.testing.assert_allclose(found.attention, attention, atol=1e-12)
    assert found.loss == pytest.approx(hinge_loss(output, P.label).item())
    assert found.error == pytest.approx((np.sign(output.numpy()) != P.label).mean())
    assert found.same == pytest.approx((attention * P.same).sum(axis=1).mean())


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_pruning_removes_the_rows_of_least_or_largest_norm(rate: float) -> None:
    model = make()
    before, removed = neuron_norms(model), round(rate * NEURONS)
    ascending = np.argsort(before)
    for by, gone in (("magnitude", ascending[:removed]), ("largest", ascending[::-1][:removed])):
        pruned = prune(model, rate, by)
        assert set(np.flatnonzero(neuron_norms(pruned) == 0)) == set(gone)
        kept = np.setdiff1d(np.arange(NEURONS), gone)
        torch.testing.assert_close(pruned.W_O[kept], model.W_O[kept])
        torch.testing.assert_close(pruned.W_V, model.W_V)
    np.testing.assert_array_equal(neuron_norms(model), before)


def test_random_pruning_draws_its_rows_from_the_generator() -> None:
    model = make()
    gone = [
        tuple(np.flatnonzero(neuron_norms(prune(model, 0.4, "random", rng(seed))) == 0))
        for seed in (0, 0, 1, 2)
    ]
    assert all(len(rows) == 4 for rows in gone)
    assert gone[0] == gone[1]
    assert len(set(gone)) > 1


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_shrunk_model_is_smaller_and_says_the_same(rate: float) -> None:
    pruned, P = prune(make(), rate), prompts()
    small = shrink(pruned)
    assert small.W_O.shape == (NEURONS - round(rate * NEURONS), DX + DY)
    assert small.m == len(small.a) == len(small.W_O)
    torch.testing.assert_close(small(P.tokens, P.query), pruned(P.tokens, P.query))
    np.testing.assert_allclose(
        evaluate(small, PATTERNS, P.indices).output, small(P.tokens, P.query).detach(), atol=1e-12
    )


def test_pruning_refuses_what_it_cannot_do() -> None:
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"rate: got {re.escape(str(rate))}|rate"):
            prune(make(), rate)
    with pytest.raises(ValueError, match="by: got 'size'"):
        prune(make(), 0.1, "size")
    with pytest.raises(ValueError, match="rng: got none"):
        prune(make(), 0.1, "random")


def test_growth_at_the_start_is_known() -> None:
    model = OneLayerTransformer(DX, DY, NEURONS, torch.Generator().manual_seed(0), delta=0.2)
    P = prompts(n=500)
    kappa = P.indices.kappa
    found = growth(model, PATTERNS, P.indices)
    length = 0.2 * 1.5 * np.sqrt(1 + kappa.astype(np.float64) ** 2)
    assert found.query == pytest.approx(length[:, -1].mean())
    assert found.key == pytest.approx(length[:, :-1].mean())
    assert found.query_along == pytest.approx(0.2 * 1.5)
    assert found.key_along == pytest.approx(0.2 * 1.5)


def test_neurons_are_read_off_the_rows_of_W_O_W_V() -> None:
    model = make()
    mu_bar = PATTERNS.mu.mean(axis=0)
    rows = np.zeros((NEURONS, DX + DY))
    rows[0, :DX], rows[0, DX:] = 3 * mu_bar, -2 * PATTERNS.q
    rows[1, :DX], rows[1, DX:] = -mu_bar, 0.5 * PATTERNS.q
    rows[2, :DX] = mu_bar / np.linalg.norm(mu_bar) + PATTERNS.nu[0] / 1.5
    with torch.no_grad():
        model.W_V.copy_(2 * torch.eye(DX + DY))
        model.W_O.copy_(torch.tensor(rows / 2))
    found = neurons(model, PATTERNS)
    length = np.linalg.norm(mu_bar)
    np.testing.assert_allclose(found.feature_norm[:3], [3 * length, length, 2**0.5])
    np.testing.assert_allclose(found.feature_angle[:3], [0, np.pi, np.pi / 4], atol=1e-7)
    np.testing.assert_allclose(found.label_norm[:3], [2, 0.5, 0])
    np.testing.assert_allclose(found.label_angle[:2], [np.pi, 0], atol=1e-7)
    assert np.isnan(found.label_angle[2:]).all()
    assert found.positive.tolist() == [True] * 5 + [False] * 5
