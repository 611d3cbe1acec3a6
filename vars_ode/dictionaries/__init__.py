"""Dictionaries: how the templates Phi are made. A layer takes one by name or as an object."""

from solvers import Registry
from vars_ode.dictionaries.dictionary import Dictionary as Dictionary
from vars_ode.dictionaries.dictionary import ReadOut as ReadOut
from vars_ode.dictionaries.dictionary import Reconstruction as Reconstruction
from vars_ode.dictionaries.dictionary import ScaledReadOut as ScaledReadOut
from vars_ode.dictionaries.dictionary import Shape as Shape
from vars_ode.dictionaries.dictionary import TemplateReadOut as TemplateReadOut
from vars_ode.dictionaries.dictionary import Templates as Templates
from vars_ode.dictionaries.dynamic import Dynamic as Dynamic
from vars_ode.dictionaries.dynamic import DynamicTemplates as DynamicTemplates
from vars_ode.dictionaries.softmax import Softmax as Softmax
from vars_ode.dictionaries.softmax import SoftmaxTemplates as SoftmaxTemplates
from vars_ode.dictionaries.static_dynamic import StaticDynamic as StaticDynamic
from vars_ode.dictionaries.static_dynamic import StaticDynamicTemplates as StaticDynamicTemplates

_registry: Registry[Dictionary] = Registry("dictionary", Dictionary)  # type: ignore[type-abstract]
_registry.register("dynamic", Dynamic)
_registry.register("static+dynamic", StaticDynamic)
_registry.register("softmax", Softmax)

get = _registry.get
available = _registry.available
register = _registry.register
name_of = _registry.name_of
