"""Binary classification in context with a nonlinear Transformer: the second wing (paper B).

`iclbook.nonlinear.classical` is imported by its own name, since scikit-learn takes a while to load.
"""

from iclbook.nonlinear.mechanism import growth as growth
from iclbook.nonlinear.mechanism import neuron_rows as neuron_rows
from iclbook.nonlinear.mechanism import neurons as neurons
from iclbook.nonlinear.mechanism import scores as scores
from iclbook.nonlinear.model import OneLayerTransformer as OneLayerTransformer
from iclbook.nonlinear.model import hinge_loss as hinge_loss
from iclbook.nonlinear.patterns import Patterns as Patterns
from iclbook.nonlinear.patterns import World as World
from iclbook.nonlinear.patterns import all_tasks as all_tasks
from iclbook.nonlinear.patterns import circle_tasks as circle_tasks
from iclbook.nonlinear.patterns import coefficients_with_sum as coefficients_with_sum
from iclbook.nonlinear.patterns import draw_world as draw_world
from iclbook.nonlinear.patterns import orthogonal_patterns as orthogonal_patterns
from iclbook.nonlinear.patterns import out_of_domain as out_of_domain
from iclbook.nonlinear.prompts import Prompts as Prompts
from iclbook.nonlinear.prompts import least_error as least_error
from iclbook.nonlinear.prompts import sample_prompts as sample_prompts
from iclbook.nonlinear.pruning import neuron_norms as neuron_norms
from iclbook.nonlinear.pruning import prune as prune
from iclbook.nonlinear.pruning import shrink as shrink
from iclbook.nonlinear.training import Trajectory as Trajectory
from iclbook.nonlinear.training import evaluate as evaluate
from iclbook.nonlinear.training import train as train
