"""iclbook/gpt.py: against torch's own encoder with the same weights, and what must not change."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from iclbook.gpt import GPT, fit
from iclbook.streams import torch_stream

INPUTS, LENGTH, WIDTH, HEADS, N = 5, 9, 12, 3, 4


def make(depth: int = 2, seed: int = 0, **options: bool) -> GPT:
    """A float64 GPT whose weights, biases and norms are all far from their start."""
    generator = torch_stream(seed, "gpt")
    model = GPT(
        INPUTS, LENGTH, width=WIDTH, depth=depth, heads=HEADS, generator=generator,
        dtype=torch.float64, **options,
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return model


def tokens(seed: int = 1, t: int = LENGTH) -> Tensor:
    return torch.randn(N, t, INPUTS, generator=torch_stream(seed, "tokens"), dtype=torch.float64)


def as_encoder(model: GPT) -> nn.TransformerEncoder:
    """torch's encoder with the blocks' weights: pre-norm, GELU, a norm at the end."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True,
        dtype=torch.float64,
    )  # fmt: skip
    depth = len(model.blocks)
    encoder = nn.TransformerEncoder(
        layer, depth, norm=nn.LayerNorm(WIDTH, dtype=torch.float64), enable_nested_tensor=False
    )
    names = {
        "self_attn.in_proj_": "attend.query_key_value.",
        "self_attn.out_proj.": "attend.write.",
        "linear1.": "grow.", "linear2.": "write.", "norm1.": "norm_1.", "norm2.": "norm_2.",
    }  # fmt: skip
    ours = model.state_dict()
    state = {
        f"layers.{block}.{theirs}{kind}": ours[f"blocks.{block}.{name}{kind}"]
        for block in range(depth)
        for theirs, name in names.items()
        for kind in ("weight", "bias")
    }
    state |= {f"norm.{kind}": ours[f"norm.{kind}"] for kind in ("weight", "bias")}
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("t", [1, 4, LENGTH])
def test_it_is_torchs_encoder_with_a_causal_mask(depth: int, t: int) -> None:
    model, x = make(depth), tokens(t=t)
    mask = nn.Transformer.generate_square_subsequent_mask(t, dtype=torch.float64)
    stream = as_encoder(model)(x @ model.read_in.weight.T + model.read_in.bias
                               + model.positions[:t], mask=mask, is_causal=True)  # fmt: skip
    expected = (stream @ model.read_out.weight.T + model.read_out.bias)[..., 0]
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("mlp", [True, False])
def test_no_position_sees_a_later_one(own: bool, softmax: bool, mlp: bool) -> None:
    model, x = make(own=own, softmax=softmax, mlp=mlp), tokens()
    changed = x.clone()
    changed[:, 5:] += 1.0
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().min() > 1e-6


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_the_answer_at_the_last_position_alone_is_the_last_of_all(own: bool, softmax: bool) -> None:
    model, x = make(own=own, softmax=softmax), tokens(t=7)
    assert torch.allclose(model(x, last=True), model(x)[:, -1:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("own", [True, False])
def test_attention_maps_are_causal_and_sum_to_one(own: bool) -> None:
    maps = make(own=own).attention(tokens())
    assert maps.shape == (2, N, HEADS, LENGTH, LENGTH)
    assert torch.allclose(maps.sum(dim=-1), torch.ones(maps.shape[:-1], dtype=torch.float64))
    assert maps.triu(1).abs().max() == 0
    diagonal = maps.diagonal(dim1=-2, dim2=-1)[..., 1:]
    assert (diagonal > 0).all() if own else (diagonal == 0).all()


def test_attention_maps_are_what_the_first_block_weighs_its_values_with() -> None:
    model, x = make(depth=1, mlp=False), tokens()
    stream = model.read_in(x) + model.positions
    values = model.blocks[0].attend.query_key_value(model.blocks[0].norm_1(stream))[..., -WIDTH:]
    values = values.view(N, LENGTH, HEADS, -1).transpose(1, 2)
    seen = (model.attention(x)[0] @ values).transpose(1, 2).flatten(2)
    expected = model.read_out(model.norm(stream + model.blocks[0].attend.write(seen)))[..., 0]
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)


def test_linear_attention_is_bilinear_over_the_number_of_visible_tokens() -> None:
    """The scores of three times the query and twice the keys are six times as large."""
    attend = make(softmax=False).blocks[0].attend
    generator = torch_stream(3, "x")
    q, k = (torch.randn(N, HEADS, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = attend._weights(q, k)  # noqa: SLF001
    assert torch.allclose(attend._weights(3 * q, 2 * k), 6 * weights)  # noqa: SLF001
    expected = (q[0, 0, 4] @ k[0, 0, 2]) / math.sqrt(4) / 5  # the fifth token sees five
    assert weights[0, 0, 4, 2].item() == pytest.approx(expected.item(), abs=1e-14)


def test_without_its_own_path_a_token_acts_through_its_scores_alone() -> None:
    """With queries of 0 the answer forgets the token that asks; with its own path it does not."""
    x, other = tokens(), tokens()
    other[:, -1] += 1.0
    for own in (True, False):
        model = make(own=own, mlp=False)
        with torch.no_grad():
            for block in model.blocks:
                block.attend.query_key_value.weight[:WIDTH] = 0
        difference = (model(x) - model(other))[:, -1].abs().max().item()
        assert (difference > 1e-3) if own else (difference < 1e-12)


def test_without_biases_and_positions_it_is_odd() -> None:
    """Norms, attention and linear maps without constants: tokens with signs changed, answer too."""
    model, x = make(mlp=False, bias=False, positions=False), tokens()
    assert torch.allclose(model(-x), -model(x), rtol=0, atol=1e-12)
    with_positions = make(mlp=False, bias=False)
    assert (with_positions(-x) + with_positions(x)).abs().max() > 1e-2


def test_without_positions_the_order_of_contexts_does_not_matter_to_one_block() -> None:
    x = tokens()
    shuffled = torch.cat([x[:, torch.tensor([3, 1, 0, 7, 6, 5, 2, 4])], x[:, -1:]], dim=1)
    for positions in (True, False):
        model = make(depth=1, positions=positions)
        difference = (model(x) - model(shuffled))[:, -1].abs().max().item()
        assert (difference > 1e-3) if positions else (difference < 1e-12)


def test_the_start_is_that_of_gpt_2() -> None:
    """Standard deviations 0.02, over sqrt(2 depth) where a block writes; biases 0, gains 1."""
    model = GPT(64, 50, width=128, depth=8, heads=2, generator=torch_stream(0, "gpt"))
    for name, weight in model.named_parameters():
        size = 0.02 / 4 if name.endswith("write.weight") else 0.02
        size = 1 / 8 if name == "read_in.weight" else size
        if weight.ndim == 2 and weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(size, rel=0.05), name
        elif "norm" in name:
            assert (weight == float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name


def test_the_same_generator_gives_the_same_model_in_both_precisions() -> None:
    one, two, rough = (
        GPT(5, 9, width=12, depth=2, heads=3, generator=torch_stream(7, "gpt"), dtype=dtype)
        for dtype in (torch.float64, torch.float64, torch.float32)
    )
    for a, b, c in zip(one.parameters(), two.parameters(), rough.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.float(), c)


def test_positions_that_are_off_stay_zero() -> None:
    model = GPT(5, 9, width=12, depth=1, heads=3, generator=torch_stream(0, "gpt"), positions=False)
    assert not model.positions.requires_grad
    assert (model.positions == 0).all()


def test_fit_descends_as_plain_gradient_descent_does() -> None:
    """Two steps of SGD with rates 0.1 and 0.05, against steps written out."""
    model, x = make(depth=1), tokens()
    target = torch.arange(float(N), dtype=torch.float64)
    byhand = copy.deepcopy(model)
    for size in (0.1, 0.05):
        loss = (byhand(x)[:, -1] - target).square().mean()
        gradients = torch.autograd.grad(loss, list(byhand.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(byhand.parameters(), gradients, strict=True):
                weight -= size * gradient
    seen: list[int] = []
    fit(
        model, lambda: (x, target), nn.functional.mse_loss, torch.optim.SGD(model.parameters()),
        lambda step: (0.1, 0.05)[step], 2, seen.append,
    )  # fmt: skip
    assert seen == [0, 1, 2]
    for ours, theirs in zip(model.parameters(), byhand.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_fit_says_when_the_loss_is_lost() -> None:
    model, x = make(), tokens()
    target = torch.full((N,), math.nan, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="loss nan at step 0"):
        fit(
            model, lambda: (x, target), nn.functional.mse_loss,
            torch.optim.SGD(model.parameters()), lambda _: 0.1, 3, lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10}, "width: got 10 with 3 heads, expected a multiple"),
        ({"depth": 0}, "depth: got 0"),
        ({"heads": 0}, "heads: got 0"),
        ({"inputs": 0}, "inputs: got 0"),
        ({"length": 0}, "length: got 0"),
    ],
)
def test_bad_sizes_are_named(change: dict[str, int], message: str) -> None:
    sizes = {"inputs": 5, "length": 9, "width": 12, "depth": 1, "heads": 3} | change
    with pytest.raises(ValueError, match=message):
        GPT(**sizes, generator=torch_stream(0, "gpt"))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 10, 5), (4, 9, 6), (4, 0, 5), (0, 9, 5), (9, 5)])
def test_tokens_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tokens: got shape .* expected \(n, t, 5\)"):
        make()(torch.zeros(shape, dtype=torch.float64))
