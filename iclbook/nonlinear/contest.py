"""What takes long on prompts of digits: tuned learners, and a small GPT (nonlinear/digits)."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from iclbook.gpt import GPT, fit
from iclbook.nonlinear.classical import classical_predictions
from iclbook.nonlinear.digits import DigitPrompts, Digits, digit_prompts, digit_tasks, split_digits
from iclbook.nonlinear.model import hinge_loss
from iclbook.streams import stream, torch_stream

CONTESTANTS: dict[str, list[Any]] = {  # each with the settings that it is tuned over
    "logistic": [LogisticRegression(C=C) for C in (0.1, 1, 10, 100)],
    "linear SVM": [SVC(kernel="linear", C=C) for C in (0.01, 0.1, 1, 10)],
    "Gaussian SVM": [SVC(C=C, gamma=g) for C in (1, 10) for g in (0.01, 0.03, 0.1, 0.3)],
    "1-NN": ["1-NN"],
    "3-NN": ["3-NN"],
}


def digits(
    seed: int, model: str, prompts: int = 500, steps: int = 3000, device: str = "cpu"
) -> dict[str, Any]:
    """Errors on unseen pairs of digits: alpha' = 0.8, then 0.4, with 4, 8, 12, 20 contexts each.

    Args:
        seed: of pictures, tasks, prompts and weights; a seed's test prompts are the chapter's.
        model: "GPT", or "classical" for learners whose settings are tuned on validation prompts.
        prompts: number of test prompts for each fraction and length.
        steps: of the training of the GPT.
        device: where the GPT is trained.
    """
    training, validation, test = split_digits(stream(seed, "digits: pictures"))
    trained, unseen = digit_tasks(range(10), 4, stream(seed, "digits: tasks"))

    def draw(pictures: Digits, n: int, use: str) -> list[DigitPrompts]:
        return [
            digit_prompts(pictures, unseen, n, l, a, stream(seed, f"digits: {use} {a} {l}"))
            for a in (0.8, 0.4)
            for l in (4, 8, 12, 20)
        ]

    tests = draw(test, prompts, "test")
    if model == "classical":
        tuning = draw(validation, 50, "tuning")

        def errors(rule: Any, on: list[DigitPrompts]) -> list[float]:  # noqa: ANN401
            return [float((classical_predictions(P, rule) != P.label).mean()) for P in on]

        best = {
            name: min(rules, key=lambda rule: sum(errors(rule, tuning)))
            for name, rules in CONTESTANTS.items()
        }
        return {"error": {name: errors(rule, tests) for name, rule in best.items()}}

    weights = torch_stream(seed, "digits: GPT")
    gpt = GPT(72, 21, width=64, depth=2, heads=2, generator=weights, positions=False).to(device)
    rng, watch = stream(seed, "digits: GPT, training"), draw(validation, 500, "watch")[3]

    def sequence(P: DigitPrompts) -> torch.Tensor:
        return torch.tensor(np.append(P.tokens, P.query[:, None], axis=1)).float().to(device)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        P = digit_prompts(training, trained, 64, 20, 0.8, rng)
        return sequence(P), torch.tensor(P.label).to(device)

    @torch.no_grad()
    def now(P: DigitPrompts) -> tuple[float, list[list[float]]]:
        """Error, and attention of the query on the same digit in each layer and head."""
        margin = P.label * gpt(sequence(P), last=True)[:, 0].cpu().numpy()
        attention = gpt.attention(sequence(P))[:, :, :, -1, :-1].cpu().numpy()
        same = (attention * P.same[:, None]).sum(axis=-1).mean(axis=1)
        return float((margin <= 0).mean()), same.tolist()

    record: list[Any] = []
    fit(
        gpt,
        batch,
        hinge_loss,
        torch.optim.Adam(gpt.parameters(), betas=(0.9, 0.99)),
        lambda step: 1e-3 * min(1, (step + 1) / 100) * (1 - step / steps),
        steps,
        lambda step: None if step % max(steps // 60, 1) else record.append([step, *now(watch)]),
    )
    P = digit_prompts(test, trained, prompts, 20, 0.8, stream(seed, "digits: test, trained"))
    return {
        "error": [now(P)[0] for P in tests],
        "error on trained pairs": now(P)[0],
        "same": now(tests[3])[1],
        "record": record,
        "parameters": sum(w.numel() for w in gpt.parameters()),
    }
