"""VARS attention in place of the self-attention of models that are built already."""

from vars_ode.conversion.annealing import Annealing as Annealing
from vars_ode.conversion.annealing import anneal as anneal
from vars_ode.conversion.convert import SINGLE_STEP as SINGLE_STEP
from vars_ode.conversion.convert import ConversionReport as ConversionReport
from vars_ode.conversion.convert import convert_attention as convert_attention
from vars_ode.conversion.convert import convert_layers as convert_layers
from vars_ode.conversion.convert import convertible_attentions as convertible_attentions
from vars_ode.conversion.convert import is_softmax_attention as is_softmax_attention
from vars_ode.conversion.reading import conversion_of as conversion_of
