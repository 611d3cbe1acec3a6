"""How gradients get back through a solve: `get`, `available`, `register` by name, like the solvers themselves."""

from solvers.adjoints.adjoint import Adjoint as Adjoint
from solvers.adjoints.checkpointed import Checkpointed as Checkpointed
from solvers.adjoints.continuous import Continuous as Continuous
from solvers.adjoints.direct import Direct as Direct
from solvers.adjoints.implicit import Implicit as Implicit
from solvers.adjoints.truncated import Truncated as Truncated
from solvers.registry import Registry

_registry: Registry[Adjoint] = Registry("adjoint", Adjoint)  # type: ignore[type-abstract]
_registry.register("direct", Direct)
_registry.register("checkpointed", Checkpointed)
_registry.register("continuous", Continuous)
_registry.register("implicit", Implicit)
_registry.register("truncated", Truncated)

get = _registry.get
available = _registry.available
register = _registry.register
name_of = _registry.name_of
