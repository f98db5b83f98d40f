"""Classical learners: each on one prompt at a time, against a plain rule or scikit-learn itself."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from iclbook.nonlinear import Prompts, all_tasks, orthogonal_patterns, sample_prompts
from iclbook.nonlinear.classical import LEARNERS, classical_predictions

PATTERNS = orthogonal_patterns(4, 5, 11, 3, 1.5, np.random.default_rng(9))


def draw(n: int = 40, l: int = 8, alpha: float = 0.6) -> Prompts:
    return sample_prompts(PATTERNS, all_tasks(4), n, l, alpha, np.random.default_rng(1), kappa=0.8)


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_neighbours_are_the_majority_of_the_nearest_contexts(k: int) -> None:
    P = draw()
    distance = np.linalg.norm(P.tokens[..., :11] - P.query[:, None, :11], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :k]
    votes = np.take_along_axis(P.context_label, nearest, axis=1).sum(axis=1)
    np.testing.assert_array_equal(classical_predictions(P, f"{k}-NN"), np.sign(votes))


@pytest.mark.parametrize(
    ("learner", "same"),
    [
        ("logistic", LogisticRegression()),
        ("linear SVM", SVC(kernel="linear")),
        ("Gaussian SVM", SVC(kernel="rbf")),
    ],
)
def test_a_learner_is_fitted_on_the_inputs_and_labels_of_one_prompt(
    learner: str, same: LogisticRegression | SVC
) -> None:
    P = draw()
    found = classical_predictions(P, learner)
    labels = P.context_label
    for n in np.flatnonzero(np.abs(labels.sum(axis=1)) < 8):
        answer = same.fit(P.tokens[n, :, :11], labels[n]).predict(P.query[n : n + 1, :11])
        assert found[n] == answer[0]


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_prompt_with_one_label_only_is_answered_with_it(learner: str) -> None:
    P = draw(n=30, l=1)
    found = classical_predictions(P, learner)
    np.testing.assert_array_equal(found, P.context_label[:, 0])
    two = draw(n=30, l=2)
    assert set(classical_predictions(two, learner)) == {-1, 1}


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_query_s_label_is_not_looked_at(learner: str) -> None:
    P = draw(n=20)
    found = classical_predictions(P, learner)
    hidden = replace(P, label=-P.label)
    np.testing.assert_array_equal(classical_predictions(hidden, learner), found)


def test_another_learner_is_refused() -> None:
    with pytest.raises(ValueError, match="learner: got '5-NN', expected one of"):
        classical_predictions(draw(), "5-NN")
