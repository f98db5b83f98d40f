"""Classical learners, fitted anew on the contexts of each prompt (nonlinear/classical-learners)."""

from typing import Literal, Protocol, get_args

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from iclbook.checks import Array

Learner = Literal["logistic", "linear SVM", "Gaussian SVM", "1-NN", "3-NN"]
LEARNERS: tuple[Learner, ...] = get_args(Learner)


class Labelled(Protocol):
    """What a learner needs of prompts; `Prompts` and `DigitPrompts` have it."""

    @property
    def x(self) -> Array:
        """Inputs of the contexts and, last, of the query, (n, l + 1, dX)."""

    @property
    def context_label(self) -> NDArray[np.int8]:
        """Labels of the contexts, +1 or -1, (n, l)."""


def classical_predictions(
    prompts: Labelled, learner: Learner | ClassifierMixin
) -> NDArray[np.int8]:
    """The label, +1 or -1, that a classical learner gives each query, (n,).

    It is fitted on the prompt's own contexts, inputs x (l, dX) and labels, and nothing else. All
    settings are scikit-learn's: penalty C = 1, for the Gaussian kernel gamma = 1 / (dX Var x). For
    others give a classifier of scikit-learn, which is fitted again for each prompt. If the contexts
    have one label only, that is the answer. 3-NN takes all contexts if there are fewer than 3; a
    tie goes to -1.

    Raises:
        ValueError: a learner that is neither a classifier nor one of LEARNERS.

    Source: paper B, Figure 4.
    """
    if not isinstance(learner, ClassifierMixin) and learner not in LEARNERS:
        raise ValueError(f"learner: got {learner!r}, expected one of {LEARNERS}")
    x, labels = prompts.x, prompts.context_label
    answers = labels[:, 0].copy()
    # The checks of arguments take longer than the fit of so few points.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for n in np.flatnonzero((labels != labels[:, :1]).any(axis=1)):
            fitted = _make(learner, labels.shape[1]).fit(x[n, :-1], labels[n])
            answers[n] = fitted.predict(x[n, -1:])[0]
    return answers


def _make(learner: Learner | ClassifierMixin, l: int) -> ClassifierMixin:
    if isinstance(learner, ClassifierMixin):
        return learner
    if learner.endswith("NN"):
        return KNeighborsClassifier(min(int(learner[0]), l), algorithm="brute")
    if learner == "logistic":
        return LogisticRegression()
    return SVC(kernel="linear" if learner == "linear SVM" else "rbf")
