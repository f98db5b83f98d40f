"""Binary classification in context with a nonlinear Transformer: the second wing (paper B).

`iclbook.nonlinear.classical` is imported by its own name, since scikit-learn takes a while to load.
"""

from iclbook.nonlinear.mechanism import Growth, Neurons, growth, neurons
from iclbook.nonlinear.model import OneLayerTransformer, hinge_loss
from iclbook.nonlinear.prompts import (
    Patterns,
    PromptIndices,
    Prompts,
    all_tasks,
    build_prompts,
    check_coverage,
    coefficients_with_sum,
    orthogonal_patterns,
    out_of_domain,
    sample_indices,
    sample_prompts,
    training_tasks,
)
from iclbook.nonlinear.pruning import neuron_norms, prune, shrink
from iclbook.nonlinear.training import Evaluation, History, evaluate, train

__all__ = [
    "Evaluation",
    "Growth",
    "History",
    "Neurons",
    "OneLayerTransformer",
    "Patterns",
    "PromptIndices",
    "Prompts",
    "all_tasks",
    "build_prompts",
    "check_coverage",
    "coefficients_with_sum",
    "evaluate",
    "growth",
    "hinge_loss",
    "neuron_norms",
    "neurons",
    "orthogonal_patterns",
    "out_of_domain",
    "prune",
    "sample_indices",
    "sample_prompts",
    "shrink",
    "train",
    "training_tasks",
]
