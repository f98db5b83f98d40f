"""What is measured inside a model, against models where it is known."""

import numpy as np
import pytest
import torch
from nonlinear_models import DX, DY, M1, NEURONS, PATTERNS, make, prompts

from iclbook.nonlinear import OneLayerTransformer, growth, neuron_rows, neurons, scores


def test_growth_at_the_start_is_known() -> None:
    model = OneLayerTransformer(DX, DY, NEURONS, torch.Generator().manual_seed(0), delta=0.2)
    P = prompts(n=500)
    kappa = P.kappa
    found = growth(model, P)
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


def test_growth_anywhere_is_the_mean_over_the_tokens() -> None:
    model, P = make(), prompts(n=30)
    W_Q, W_K = model.W_Q.detach().numpy(), model.W_K.detach().numpy()
    found = growth(model, P)
    lengths, along = {"query": [], "key": []}, {"query": [], "key": []}
    for n in range(30):
        for name, W, tokens, shown in (
            ("query", W_Q, P.query[n : n + 1], P.pattern[n, -1:]),
            ("key", W_K, P.tokens[n], P.pattern[n, :-1]),
        ):
            for token, j in zip(tokens, shown, strict=True):
                lengths[name].append(np.linalg.norm(W @ token))
                along[name].append((W @ token)[:DX] @ PATTERNS.mu[j] / PATTERNS.beta)
    assert found.query == pytest.approx(np.mean(lengths["query"]))
    assert found.key == pytest.approx(np.mean(lengths["key"]))
    assert found.query_along == pytest.approx(np.mean(along["query"]))
    assert found.key_along == pytest.approx(np.mean(along["key"]))


def test_the_neurons_of_any_model_are_the_rows_of_W_O_W_V() -> None:
    """Row r says how neuron r follows the pooled token before the ReLU."""
    model = make()
    found = neurons(model, PATTERNS)
    W_O, W_V = model.W_O.detach().numpy(), model.W_V.detach().numpy()
    assert not np.allclose(W_V, W_V.T)
    for r in range(NEURONS):
        follows = np.array([W_O[r] @ (W_V @ token) for token in np.eye(DX + DY)])
        assert found.feature_norm[r] == pytest.approx(np.linalg.norm(follows[:DX]))
        assert found.label_norm[r] == pytest.approx(np.linalg.norm(follows[DX:]))


def test_the_score_is_that_of_the_model_on_two_tokens_without_irrelevant_parts() -> None:
    """A query with pattern j looks at contexts with patterns k and 0: log odds are differences."""
    model = make()
    found = scores(model, PATTERNS)
    assert found.shape == (M1, M1)
    basis = PATTERNS.basis
    for j in range(M1):
        for k in range(M1):
            tokens = np.stack([basis[k], basis[0]])[None]
            first, second = model.attention(tokens, basis[j : j + 1])[0].detach().numpy()
            assert np.log(first / second) == pytest.approx(found[j, k] - found[j, 0])
    start = OneLayerTransformer(DX, DY, NEURONS, torch.Generator().manual_seed(0), delta=0.2)
    np.testing.assert_allclose(scores(start, PATTERNS), (0.2 * 1.5) ** 2 * np.eye(M1), atol=1e-12)


def test_the_output_is_that_of_the_neurons_on_the_pooled_token() -> None:
    model, P = make(), prompts()
    pooled = P.pool(model.attention(P.tokens, P.query).detach().numpy())
    hidden = np.maximum(pooled @ neuron_rows(model).T, 0)
    np.testing.assert_allclose(hidden @ model.a.numpy(), model(P.tokens, P.query).detach())
