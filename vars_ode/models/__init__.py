"""Robust Vision Transformers with any of the paper's attentions, registered with timm."""

from vars_ode.models import entrypoints as entrypoints
from vars_ode.models.attentions import ATTENTIONS as ATTENTIONS
from vars_ode.models.attentions import AttentionChoice as AttentionChoice
from vars_ode.models.blocks import Block as Block
from vars_ode.models.entrypoints import SCALES as SCALES
from vars_ode.models.rvt import RobustVisionTransformer as RobustVisionTransformer
