"""Classical learners, fitted anew on the contexts of each prompt (nonlinear/classical-learners)."""

from typing import Literal, get_args

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from iclbook.nonlinear.prompts import Prompts

Learner = Literal["logistic", "linear SVM", "Gaussian SVM", "1-NN", "3-NN"]
LEARNERS: tuple[Learner, ...] = get_args(Learner)


def classical_predictions(prompts: Prompts, learner: Learner) -> NDArray[np.int8]:
    """The label, +1 or -1, that a classical learner gives each query, (n,).

    It is fitted on the prompt's own contexts, inputs x (l, dX) and labels, and nothing else. All
    settings are scikit-learn's: penalty C = 1, for the Gaussian kernel gamma = 1 / (dX Var x). If
    the contexts have one label only, that is the answer. 3-NN takes all contexts if there are fewer
    than 3; a tie goes to -1.

    Raises:
        ValueError: a learner that is not one of LEARNERS.

    Source: paper B, Figure 4.
    """
    if learner not in LEARNERS:
        raise ValueError(f"learner: got {learner!r}, expected one of {LEARNERS}")
    x, labels = prompts.tokens[..., : prompts.dX], prompts.indices.context_label
    query = prompts.query[:, None, : prompts.dX]
    answers = labels[:, 0].copy()
    # The checks of arguments take longer than the fit of so few points.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for n in np.flatnonzero((labels != labels[:, :1]).any(axis=1)):
            fitted = _make(learner, labels.shape[1]).fit(x[n], labels[n])
            answers[n] = fitted.predict(query[n])[0]
    return answers


def classical_error(prompts: Prompts, learner: Learner) -> float:
    """Fraction of the queries that a classical learner gets wrong; as `classical_predictions`."""
    return float((classical_predictions(prompts, learner) != prompts.label).mean())


def _make(learner: Learner, l: int) -> ClassifierMixin:
    match learner:
        case "logistic":
            return LogisticRegression()
        case "linear SVM":
            return SVC(kernel="linear")
        case "Gaussian SVM":
            return SVC(kernel="rbf")
        case _:
            return KNeighborsClassifier(min(int(learner[0]), l), algorithm="brute")
