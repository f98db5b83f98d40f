"""In-context linear regression: the first wing of the book (paper A).

Risks are exact, in float64 and include the floor sigma^2.
"""

from iclbook.linear.estimators import Estimate as Estimate
from iclbook.linear.estimators import bayes_estimate as bayes_estimate
from iclbook.linear.estimators import bayes_risk as bayes_risk
from iclbook.linear.estimators import gd_beta_estimate as gd_beta_estimate
from iclbook.linear.estimators import relative_error as relative_error
from iclbook.linear.flow import Flow as Flow
from iclbook.linear.flow import curvature_in_beta as curvature_in_beta
from iclbook.linear.flow import gd_beta_gradient as gd_beta_gradient
from iclbook.linear.flow import gd_beta_hessian as gd_beta_hessian
from iclbook.linear.flow import gradient_descent as gradient_descent
from iclbook.linear.flow import gradient_flow as gradient_flow
from iclbook.linear.law import ShortPrompts as ShortPrompts
from iclbook.linear.law import sample_short as sample_short
from iclbook.linear.law import short_predictions as short_predictions
from iclbook.linear.layers import LinearSelfAttention as LinearSelfAttention
from iclbook.linear.layers import LinearTransformerBlock as LinearTransformerBlock
from iclbook.linear.layers import moment_matrix as moment_matrix
from iclbook.linear.layers import reduced_form as reduced_form
from iclbook.linear.layers import reduced_predictions as reduced_predictions
from iclbook.linear.layers import token_matrix as token_matrix
from iclbook.linear.risk import GDBetaMinimum as GDBetaMinimum
from iclbook.linear.risk import LSAMinimum as LSAMinimum
from iclbook.linear.risk import LTBMinimum as LTBMinimum
from iclbook.linear.risk import gd_beta_minimum as gd_beta_minimum
from iclbook.linear.risk import gd_beta_risk as gd_beta_risk
from iclbook.linear.risk import lsa_minimum as lsa_minimum
from iclbook.linear.risk import lsa_risk as lsa_risk
from iclbook.linear.risk import ltb_gradient as ltb_gradient
from iclbook.linear.risk import ltb_hessian as ltb_hessian
from iclbook.linear.risk import ltb_minimum as ltb_minimum
from iclbook.linear.risk import ltb_risk as ltb_risk
from iclbook.linear.task import Prompts as Prompts
from iclbook.linear.task import RegressionTask as RegressionTask
from iclbook.linear.training import Trajectory as Trajectory
from iclbook.linear.training import descend as descend
from iclbook.linear.training import train as train
