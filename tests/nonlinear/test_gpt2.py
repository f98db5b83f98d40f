"""iclbook/nonlinear/gpt2.py: what is read off models whose weights are set."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iclbook.gpt import GPT
from iclbook.nonlinear import (
    Patterns,
    Prompts,
    all_tasks,
    orthogonal_patterns,
    out_of_domain,
    sample_prompts,
)
from iclbook.nonlinear import gpt2 as under_test
from iclbook.nonlinear.gpt2 import (
    ALPHAS,
    LENGTHS,
    SUMS,
    as_sequence,
    gpt_classification,
    hinge,
    near_one_pattern,
    neuron_labels,
)
from iclbook.streams import torch_stream

M1, DX, DY, WIDTH, L = 6, 18, 3, 16, 7
HALF = WIDTH // 2


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@cache
def patterns() -> Patterns:
    return orthogonal_patterns(M1, 8, DX, DY, 1.5, rng(9))


def draw(n: int = 50, seed: int = 1) -> Prompts:
    """Prompts in which at least some contexts show the query's pattern."""
    return sample_prompts(patterns(), all_tasks(M1), n, L, 0.8, rng(seed), contexts="guaranteed")


def blank(depth: int = 1) -> GPT:
    """A GPT of two heads: gains of the norms random, positions and weights of the blocks 0."""
    generator = torch_stream(0, "blank")
    model = GPT(DX + DY, L + 1, width=WIDTH, depth=depth, heads=2, generator=generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "positions" or ("blocks" in name and weight.ndim == 2):
                weight.zero_()
            elif "norm" in name and name.endswith("weight"):
                weight += 0.5 * torch.rand(weight.shape, generator=generator)
    return model


def matching() -> GPT:
    """Two blocks. The first head of the second finds the query's pattern, the others are uniform.

    The patterns stand on different axes of the stream, which is read in from them alone.
    """
    model = blank(depth=2)
    with torch.no_grad():
        model.read_in.weight.zero_()
        model.read_in.weight[:M1, :DX] = torch.tensor(patterns().mu)
        model.blocks[1].norm_1.weight.fill_(1.0)
        for part in (0, HALF * 2):  # of the queries and of the keys, the head's first axes
            model.blocks[1].attend.query_key_value.weight[part : part + M1, :M1] = 6 * torch.eye(M1)
    return model


def test_a_sequence_is_the_contexts_with_their_labels_then_the_query_without() -> None:
    prompts = draw(4)
    found = as_sequence(prompts)
    assert found.shape == (4, L + 1, DX + DY)
    assert found.dtype == torch.float32
    for n in range(4):
        for i in range(L + 1):
            x = patterns().mu[prompts.pattern[n, i]]
            x = x + prompts.kappa[n, i] * patterns().nu[prompts.irrelevant[n, i]]
            y = prompts.context_label[n, i] if i < L else 0
            expected = np.concatenate([x, y * patterns().q])
            np.testing.assert_allclose(found[n, i].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [6, 9])
@pytest.mark.parametrize("s", [0.5, -1.0, 1.3])
def test_combinations_near_one_pattern_are_orthogonal_with_the_sum_and_the_norm(
    size: int, s: float
) -> None:
    k = near_one_pattern(size, s, rng())
    assert k.shape == (4, size)
    np.testing.assert_allclose(k @ k.T, (s**2 + 2 * 0.3**2) * np.eye(4), atol=1e-12)
    np.testing.assert_allclose(k[:2].sum(axis=1), s)
    for row in k[:2]:
        assert sorted(row[row != 0].tolist()) == sorted([-0.3, 0.3, s])
    assert not (k[0] * k[1]).any()  # of different patterns


def test_combinations_near_one_pattern_make_new_patterns() -> None:
    new = out_of_domain(patterns(), near_one_pattern(M1, 0.5, rng()), rng())
    np.testing.assert_allclose(new.beta, 1.5 * np.sqrt(0.25 + 0.18))


def test_each_pattern_can_be_the_one_that_combinations_are_near() -> None:
    nearest = {int(near_one_pattern(M1, 0.9, rng(seed))[0].argmax()) for seed in range(60)}
    assert nearest == set(range(M1))


@pytest.mark.parametrize(
    ("size", "s", "message"),
    [
        (5, 1.0, "M1: got 5, expected at least 6"),
        (6, float("nan"), "s: got 1 entries that are NaN"),
    ],
)
def test_combinations_that_there_are_not_are_named(size: int, s: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        near_one_pattern(size, s, rng())


def with_one_path() -> GPT:
    """One block in which only labels move anything, so that the norms scale and nothing more.

    Inputs fill the first half of the stream, labels the second, and neither has a mean. Values,
    neurons and the answer read the second half, which is 0 at labels of 0: there the norms divide
    by what the inputs alone give.
    """
    model = blank().double()
    generator = torch_stream(1, "path")

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def without_mean(weight: Tensor) -> Tensor:
        return weight - weight.mean(dim=0)

    block = model.blocks[0]
    with torch.no_grad():
        model.read_in.weight.zero_()
        model.read_in.weight[:HALF, :DX] = without_mean(random(HALF, DX))
        model.read_in.weight[HALF:, DX:] = without_mean(random(HALF, DY))
        block.attend.query_key_value.weight[2 * WIDTH :, HALF:] = random(WIDTH, HALF)
        block.attend.write.weight[HALF:] = without_mean(random(HALF, WIDTH))
        block.grow.weight[:, HALF:] = random(4 * WIDTH, HALF)
        block.write.weight[HALF:] = without_mean(random(HALF, 4 * WIDTH))
        block.norm_2.weight[:HALF] = block.norm_2.weight[0]
        model.read_out.weight[:, HALF:] = random(1, HALF)
    return model


def test_the_angle_of_a_neurons_label_part_is_that_of_its_slope_in_a_contexts_label() -> None:
    model, seen, slopes, h = with_one_path(), [], [], 1e-5
    model.blocks[0].grow.register_forward_hook(lambda _, __, output: seen.append(output))
    tokens = as_sequence(draw(1)).double()
    tokens[:, :, DX:] = 0
    for axis in range(DY):
        moved = tokens.clone()
        for side in (h, -h):
            moved[0, 2, DX + axis] = side
            model(moved)
        slopes.append((seen[-2] - seen[-1])[0, -1].detach() / (2 * h))
    slope = torch.stack(slopes, dim=1).numpy()  # (4 width, dY)
    expected = np.arccos(slope @ patterns().q / np.linalg.norm(slope, axis=1))
    angles, _ = neuron_labels(model, patterns())
    assert angles.shape == (1, 4 * WIDTH)
    np.testing.assert_allclose(angles[0], expected, atol=1e-6)


def test_the_weight_of_a_neuron_is_what_the_answer_gains_when_it_fires() -> None:
    model, slopes, h = with_one_path(), [], 1e-5
    tokens = as_sequence(draw(1)).double()
    tokens[:, :, DX:] = 0
    bias = model.blocks[0].grow.bias
    for neuron in range(4 * WIDTH):
        answers = []
        for side in (h, -h):
            with torch.no_grad():
                bias[neuron] = side
                answers.append(model(tokens)[0, -1].item())
                bias[neuron] = 0
        slopes.append((answers[0] - answers[1]) / (2 * h))
    weights = neuron_labels(model, patterns())[1][0]
    ratio = np.array(slopes) / weights  # the last norm and GELU's slope, the same for all
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert ratio[0] > 0


def test_a_turn_of_q_turns_the_angles() -> None:
    """-q for q: what was at an angle t to it is at pi - t."""
    model = with_one_path()
    mirrored = Patterns(patterns().mu, patterns().nu, -patterns().q)
    there, back = neuron_labels(model, patterns())[0], neuron_labels(model, mirrored)[0]
    np.testing.assert_allclose(there + back, np.pi)


def test_the_spread_weighs_each_neuron_by_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means: (3.0 2 + 2.0 2) / 4 = 2.5 for -, (0.2 1 + 0.4 3) / 4 = 0.35 for +."""
    angles, weights = np.array([[0.2, 0.4, 3.0, 2.0]]), np.array([[1.0, 3.0, -2.0, -2.0]])
    monkeypatch.setattr(under_test, "neuron_labels", lambda *_: (angles, weights))
    found = under_test._spread(blank(), patterns())  # noqa: SLF001
    np.testing.assert_allclose(found, np.rad2deg([2.5 - 0.35]))


def test_uniform_attention_has_the_share_of_the_contexts_and_a_matching_head_all() -> None:
    prompts = draw()
    share = under_test._attention(matching(), prompts, "cpu")  # noqa: SLF001
    even = prompts.same.mean()
    np.testing.assert_allclose(share[0], [even, even], rtol=1e-6)
    np.testing.assert_allclose(share[1], [1, even], rtol=1e-3)


def test_a_head_that_is_cut_attends_to_all_tokens_alike_and_nothing_else_changes() -> None:
    model, tokens = matching(), as_sequence(draw())
    with torch.no_grad():
        for block in model.blocks:  # so that a query of its bias alone would not be uniform
            block.attend.query_key_value.bias += torch.randn(
                3 * WIDTH, generator=torch_stream(2, "bias")
            )
        before = model.attention(tokens)
        cut = under_test._without(model, 1, 0).attention(tokens)  # noqa: SLF001
        after = model.attention(tokens)
    assert torch.equal(before, after)
    visible = torch.arange(1, L + 2)[:, None]
    even = (torch.ones(L + 1, L + 1) / visible).tril().expand(len(tokens), -1, -1)
    assert torch.allclose(cut[1, :, 0], even, atol=1e-6)
    assert torch.equal(cut[0], before[0])
    assert torch.equal(cut[1, :, 1], before[1, :, 1])
    assert (cut[1, :, 0] - before[1, :, 0]).abs().max() > 0.1


def test_the_hinge_loss_is_written_out() -> None:
    output, label = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([1.0, 1.0, 1.0])
    assert hinge(output, label).item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert hinge(-output, -label).item() == pytest.approx((0 + 0.5 + 2) / 3)


def test_an_answer_of_0_is_an_error() -> None:
    model = blank()
    with torch.no_grad():
        model.read_out.weight.zero_()
    assert under_test._tested(model, draw(), "cpu") == (1.0, 1.0)  # noqa: SLF001


def cell(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    sizes: dict[str, Any] = {"depth": 2, "width": 8, "steps": 2, "batch": 4, "test": 10, **changes}
    return gpt_classification(3, **sizes)


@cache
def tiny() -> dict[str, Any]:
    return cell()


def test_a_cell_is_json_and_the_same_each_time() -> None:
    assert json.loads(json.dumps(tiny(), allow_nan=False)) == tiny()
    assert cell() == tiny()


def test_a_cell_follows_its_settings() -> None:
    for change in ({"fixed": True}, {"beta": 2.0}, {"lr": 0.1}):
        assert cell(**change)["loss"] != tiny()["loss"], change


def test_a_cell_holds_what_it_says() -> None:
    found = tiny()
    assert found["steps"] == [0, 1, 2]
    assert all(len(found[name]) == 3 for name in ("loss", "error", "attention", "spread"))
    assert np.shape(found["attention"]) == (3, 2, 2)
    assert np.shape(found["spread"]) == (3, 2)
    (end,) = found["close"]  # no level is reached
    assert end["step"] == 2
    assert end["below"] == []
    assert np.shape(end["unit"]) == np.shape(end["free"]) == (len(SUMS), 2)
    assert np.shape(end["inside"]) == np.shape(end["outside"]) == (len(ALPHAS), len(LENGTHS))
    assert np.shape(end["cut"]) == (2, 2)
    assert np.sum(end["angles"], axis=(1, 2)).tolist() == [32, 32]  # each neuron once


def test_levels_that_are_passed_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses 0.9, 0.2, 0.05: two levels at once, then one, which is the end as well."""
    losses = iter([0.9, 0.2, 0.05])
    monkeypatch.setattr(under_test, "_tested", lambda *_: (0.5, next(losses)))
    monkeypatch.setattr(under_test, "_closely", lambda *_: {})
    assert [(one["step"], one["below"]) for one in cell()["close"]] == [
        (1, [0.5, 0.3]), (2, [0.1]),
    ]  # fmt: skip
