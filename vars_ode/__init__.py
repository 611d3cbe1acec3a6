"""VARS attention as a continuous-time ODE with pluggable solvers.

layer = vars_ode.VARSAttention(dim=192, num_heads=3, dictionary="softmax", solver="rk4")
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from vars_ode._loading import stop_quietly
from vars_ode._solvers_guard import check_solvers

stop_quietly()
check_solvers()

from vars_ode import dictionaries as dictionaries  # noqa: E402
from vars_ode import models as models  # noqa: E402
from vars_ode._version import __version__ as __version__  # noqa: E402
from vars_ode.attention import VARSAttention as VARSAttention  # noqa: E402
from vars_ode.baselines import PerformerAttention as PerformerAttention  # noqa: E402
from vars_ode.baselines import PositionScaledAttention as PositionScaledAttention  # noqa: E402
from vars_ode.building import ModelSpec as ModelSpec  # noqa: E402
from vars_ode.checkpoints import CheckpointError as CheckpointError  # noqa: E402
from vars_ode.conversion import ConversionReport as ConversionReport  # noqa: E402
from vars_ode.conversion import anneal as anneal  # noqa: E402
from vars_ode.conversion import convert_attention as convert_attention  # noqa: E402
from vars_ode.convolutional import VARSConvAttention as VARSConvAttention  # noqa: E402
from vars_ode.dictionaries import Dynamic as Dynamic  # noqa: E402
from vars_ode.dictionaries import Softmax as Softmax  # noqa: E402
from vars_ode.dictionaries import StaticDynamic as StaticDynamic  # noqa: E402
from vars_ode.fields import LCA as LCA  # noqa: E402
from vars_ode.fields import ProximalFlow as ProximalFlow  # noqa: E402
from vars_ode.fields import ReconstructionArgs as ReconstructionArgs  # noqa: E402
from vars_ode.fields import energy as energy  # noqa: E402
from vars_ode.fields import kkt_residual as kkt_residual  # noqa: E402
from vars_ode.layer import ReconstructionLayer as ReconstructionLayer  # noqa: E402
from vars_ode.models import RobustVisionTransformer as RobustVisionTransformer  # noqa: E402
from vars_ode.models import attention_layer as attention_layer  # noqa: E402
from vars_ode.models import attention_maps as attention_maps  # noqa: E402
from vars_ode.models import available_attentions as available_attentions  # noqa: E402
from vars_ode.models import set_solver as set_solver  # noqa: E402
from vars_ode.models import with_solver as with_solver  # noqa: E402
from vars_ode.rotary import VARSRotaryAttention as VARSRotaryAttention  # noqa: E402
from vars_ode.saving import LoadReport as LoadReport  # noqa: E402
from vars_ode.saving import list_pretrained as list_pretrained  # noqa: E402
from vars_ode.saving import load_checkpoint as load_checkpoint  # noqa: E402
from vars_ode.saving import load_pretrained as load_pretrained  # noqa: E402
from vars_ode.saving import save_checkpoint as save_checkpoint  # noqa: E402
from vars_ode.saving import save_pretrained as save_pretrained  # noqa: E402
from vars_ode.weight_decay import no_weight_decay as no_weight_decay  # noqa: E402

logging.getLogger("vars_ode").addHandler(logging.NullHandler())  # silent until the program sets up logging

if TYPE_CHECKING:
    from vars_ode.comparison import Comparison as Comparison
    from vars_ode.comparison import compare as compare

# Loaded when they are first used: plots and training need more than layers and models.
_LATER = {"Comparison": "vars_ode.comparison", "compare": "vars_ode.comparison"}
_PACKAGES = ("analysis", "bench", "conversion", "data", "report", "robustness", "saving", "study", "training")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"vars_ode.{name}")
    raise AttributeError(f"module 'vars_ode' has no attribute {name!r}")


__all__ = [
    "LCA",
    "CheckpointError",
    "Comparison",
    "ConversionReport",
    "Dynamic",
    "LoadReport",
    "ModelSpec",
    "PerformerAttention",
    "PositionScaledAttention",
    "ProximalFlow",
    "ReconstructionArgs",
    "ReconstructionLayer",
    "RobustVisionTransformer",
    "Softmax",
    "StaticDynamic",
    "VARSAttention",
    "VARSConvAttention",
    "VARSRotaryAttention",
    "analysis",
    "anneal",
    "attention_layer",
    "attention_maps",
    "available_attentions",
    "bench",
    "compare",
    "conversion",
    "convert_attention",
    "data",
    "dictionaries",
    "energy",
    "kkt_residual",
    "list_pretrained",
    "load_checkpoint",
    "load_pretrained",
    "models",
    "no_weight_decay",
    "report",
    "robustness",
    "save_checkpoint",
    "save_pretrained",
    "saving",
    "set_solver",
    "study",
    "training",
    "with_solver",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
