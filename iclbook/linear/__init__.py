"""In-context linear regression: the first wing of the book (paper A).

Risks are exact, in float64 and include the floor sigma^2.
"""

from iclbook.linear.estimators import Estimate, bayes_estimate, bayes_risk, gd_beta_estimate
from iclbook.linear.flow import (
    Flow,
    curvature_in_beta,
    gd_beta_gradient,
    gd_beta_hessian_product,
    gradient_descent,
    gradient_flow,
)
from iclbook.linear.law import ShortPrompts, sample_short, short_predictions
from iclbook.linear.layers import (
    LinearSelfAttention,
    LinearTransformerBlock,
    reduced_form,
    reduced_predictions,
    token_matrix,
)
from iclbook.linear.risk import (
    GDBetaMinimum,
    LSAMinimum,
    LTBMinimum,
    gd_beta_minimum,
    gd_beta_risk,
    lsa_minimum,
    lsa_risk,
    ltb_minimum,
    ltb_risk,
)
from iclbook.linear.task import Prompts, RegressionTask
from iclbook.linear.training import Trajectory, train

__all__ = [
    "Estimate",
    "Flow",
    "GDBetaMinimum",
    "LSAMinimum",
    "LTBMinimum",
    "LinearSelfAttention",
    "LinearTransformerBlock",
    "Prompts",
    "RegressionTask",
    "ShortPrompts",
    "Trajectory",
    "bayes_estimate",
    "bayes_risk",
    "curvature_in_beta",
    "gd_beta_estimate",
    "gd_beta_gradient",
    "gd_beta_hessian_product",
    "gd_beta_minimum",
    "gd_beta_risk",
    "gradient_descent",
    "gradient_flow",
    "lsa_minimum",
    "lsa_risk",
    "ltb_minimum",
    "ltb_risk",
    "reduced_form",
    "reduced_predictions",
    "sample_short",
    "short_predictions",
    "token_matrix",
    "train",
]
