"""The table of attention names, the VARS layers of a model, and Robust Vision Transformers."""

from vars_ode.models import entrypoints as entrypoints
from vars_ode.models.attentions import NamedAttention as NamedAttention
from vars_ode.models.attentions import attention_layer as attention_layer
from vars_ode.models.attentions import available_attentions as available_attentions
from vars_ode.models.attentions import named_attention as named_attention
from vars_ode.models.blocks import Block as Block
from vars_ode.models.entrypoints import SCALES as SCALES
from vars_ode.models.layers import layer_inputs as layer_inputs
from vars_ode.models.layers import place_layers as place_layers
from vars_ode.models.layers import set_solver as set_solver
from vars_ode.models.layers import single_step_limit as single_step_limit
from vars_ode.models.layers import vars_layers as vars_layers
from vars_ode.models.layers import with_solver as with_solver
from vars_ode.models.maps import attention_maps as attention_maps
from vars_ode.models.rvt import RobustVisionTransformer as RobustVisionTransformer
from vars_ode.models.solves import AT_REST as AT_REST
from vars_ode.models.solves import MOST_STEPS as MOST_STEPS
from vars_ode.models.solves import Solve as Solve
from vars_ode.models.solves import parse_solves as parse_solves
from vars_ode.models.solves import training_settings as training_settings
