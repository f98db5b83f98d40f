"""iclbook/linear/gpt2.py: its tokens, its task, and a run in small."""

import json

import numpy as np
import pytest
import torch

from iclbook.linear import gd_beta_minimum, token_matrix
from iclbook.linear.gpt2 import as_sequence, gpt_regression, task_with
from iclbook.streams import stream


def test_a_sequence_is_the_papers_token_matrix_turned() -> None:
    prompts = task_with(2).sample(5, stream(0, "gpt2"))
    E = token_matrix(prompts.X, prompts.y, prompts.x)  # (n, d + 1, M + 1)
    assert torch.allclose(as_sequence(prompts), torch.as_tensor(E).mT.float())


def test_the_constant_is_a_first_token_with_a_coordinate_of_its_own() -> None:
    prompts = task_with(2).sample(5, stream(0, "gpt2"))
    plain, longer = as_sequence(prompts), as_sequence(prompts, constant=True)
    assert longer.shape == (5, plain.shape[1] + 1, plain.shape[2] + 1)
    assert torch.equal(longer[:, 1:, :-1], plain)
    assert (longer[:, 1:, -1] == 0).all()
    assert torch.equal(longer[:, 0], torch.tensor([0.0, 0, 0, 0, 1]).expand(5, 5))


def test_the_hidden_label_is_in_no_token() -> None:
    prompts = task_with(2).sample(5, stream(0, "gpt2"))
    assert (as_sequence(prompts)[:, -1, 3] == 0).all()


def test_the_levels_do_not_depend_on_the_signal() -> None:
    """LTB's least risk and tau know beta_star only through its absence."""
    near, far = task_with(0), task_with(10)
    assert gd_beta_minimum(near).risk == pytest.approx(gd_beta_minimum(far).risk, rel=1e-12)
    assert near.tau == far.tau == pytest.approx(3.25)
    assert np.array_equal(far.beta_star, [10, 10, 10])


def test_a_run_measures_what_the_model_does() -> None:
    """At the start GPT-2 answers about 0: its risk is the mean squared label, |beta*|^2 + tau."""
    found = gpt_regression(0, 2, steps=20, width=8, depth=1, batch=8, test=4000)
    assert found["steps"][0] == 0
    assert found["steps"][-1] == 20
    assert len(found["risk"]) == len(found["steps"])
    assert found["risk"][0] == pytest.approx(12 + 3.25, rel=0.15)
    json.dumps(found, allow_nan=False)


def test_training_lowers_the_risk_and_repeats() -> None:
    runs = [
        gpt_regression(1, 2, steps=120, width=8, depth=1, batch=32, lr=0.02, test=2000)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["risk"][-1] < 0.6 * runs[0]["risk"][0]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        # read-in, block (qkv, write), norms, read-out; positions; biases; MLP of 4 times the width
        ({"positions": False, "bias": False}, 4 * 8 + 4 * 64 + 2 * 8 + 8),
        ({"bias": False}, 4 * 8 + 4 * 64 + 2 * 8 + 8 + 11 * 8),
        ({"positions": False, "bias": False, "constant": True}, 5 * 8 + 4 * 64 + 2 * 8 + 8),
        ({"positions": False, "bias": False, "mlp": True}, 4 * 8 + 12 * 64 + 3 * 8 + 8),
        ({"positions": False}, 4 * 8 + 4 * 64 + 2 * 8 + 8 + 8 + 3 * 8 + 8 + 2 * 8 + 1),
    ],
)
def test_a_run_trains_the_weights_that_it_says(options: dict[str, bool], weights: int) -> None:
    found = gpt_regression(0, 0, steps=1, width=8, depth=1, batch=2, test=20, **options)
    assert found["weights"] == weights
