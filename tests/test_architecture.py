"""Dependencies between the parts run one way, and no module uses another one's private names: read from the source."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# The rooms of the library from the bottom to the top: a module imports from its own room and from lower ones. The parts
# in a room are modules and packages of `vars_ode`, and `solvers`.
ROOMS: tuple[frozenset[str], ...] = (
    frozenset({"solvers"}),
    frozenset({"fields", "grams", "rates", "masks", "fourier", "grids", "representation", "statistics"})
    | frozenset({"plotting", "measuring", "files", "_version", "environment", "configured", "weight_decay", "folding"}),
    frozenset({"dictionaries"}),
    frozenset({"layer"}),
    frozenset({"learned"}),
    frozenset({"attention", "rotary", "convolutional", "baselines"}),
    frozenset({"models"}),
    frozenset({"conversion"}),
    frozenset({"robustness", "data"}),
    frozenset({"checkpoints"}),
    frozenset({"building"}),
    frozenset({"saving"}),
    frozenset({"training"}),
    frozenset({"analysis"}),
    frozenset({"comparison", "evaluation"}),
    frozenset({"study"}),
    frozenset({"report"}),
    frozenset({"bench"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
)
FLOOR = {part: level for level, room in enumerate(ROOMS) for part in room}
# What a part may import of the library at most, where that is less than everything below it.
ALLOWED: dict[str, set[str]] = {
    "solvers": set(),
    "robustness": {"measuring", "representation", "solvers"},  # any classifier: it knows nothing of attention
    "data": {"solvers"},
}
# The package itself imports what it exports; `python -m vars_ode` starts the command line.
DOORS = {"vars_ode", "vars_ode.__main__", "vars_ode._solvers_guard", "vars_ode._loading"}

# Private attributes of others that are used all the same: name -> reason.
FOREIGN_PRIVATES = {
    "_cdata": "the address of a torch storage, its only identity: two Python objects may stand for one storage",
    "_DisableFuncTorch": "to read the numbers of a tensor within a transform, for error control",
    "_replace": "public for named tuples: the underscore keeps it apart from their fields",
    "_C": "torch's own functions, for the next line",
    "_current_level": "whether forward-mode differentiation is on; to ask each tensor takes three times as long",
    "_reset_state": "Accelerate keeps one state per process, and frees it in no other way",
    "_exit": "os._exit ends a process from one of its threads, which sys.exit does not",
    "_functorch": "whether a value is wrapped by a transform of torch.func, which torch does not tell otherwise",
}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int


def modules() -> dict[str, ast.Module]:
    """Every module of the two packages by its dotted name."""
    found = {}
    for package in ("solvers", "vars_ode"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> Iterator[Import]:
    """What a module imports of the two packages, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("solvers", "vars_ode"):
                    yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute here"
            module = str(node.module)
            if module.split(".")[0] in ("solvers", "vars_ode"):
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield Import(name, inner if inner in MODULES else module, node.lineno)


def part(module: str) -> str:
    """The part of the library that a module belongs to: "solvers", "analysis", "fields", ..."""
    pieces = module.split(".")
    return pieces[0] if pieces[0] == "solvers" or len(pieces) == 1 else pieces[1]


INSIDE = [name for name in MODULES if name not in DOORS]


def test_every_module_has_a_room() -> None:
    assert {part(name) for name in INSIDE} == FLOOR.keys()


@pytest.mark.parametrize("name", INSIDE)
def test_no_module_imports_a_higher_room(name: str) -> None:
    own = part(name)
    wrong = [
        f"{name}:{found.line} imports {found.imported}"
        for found in imports(name)
        if part(found.imported) != own
        and (
            found.imported in DOORS  # would run every import of the package
            or FLOOR[part(found.imported)] > FLOOR[own]
            or part(found.imported) not in ALLOWED.get(own, FLOOR.keys())
        )
    ]
    assert wrong == []


def test_parts_of_a_room_do_not_depend_on_each_other_in_a_circle() -> None:
    for room in ROOMS:
        graph: dict[str, set[str]] = {own: set() for own in room}
        for name in INSIDE:
            if part(name) in room:
                graph[part(name)] |= {part(found.imported) for found in imports(name)} & room - {part(name)}
        TopologicalSorter(graph).prepare()  # a CycleError names the circle


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_privates(tree: ast.Module) -> set[str]:
    """Private names that a module defines: functions, methods, classes, fields, attributes of self and cls."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return {name for name in names if private(name)}


def is_self(node: ast.expr) -> bool:
    """self, cls, super() or type(self): the object itself."""
    if isinstance(node, ast.Name):
        return node.id in ("self", "cls")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "super" or (node.func.id == "type" and all(map(is_self, node.args)))
    return False


@pytest.mark.parametrize("name", MODULES)
def test_no_module_uses_the_private_attributes_of_another(name: str) -> None:
    own = own_privates(MODULES[name])
    wrong = [
        f"{name}:{node.lineno} uses {ast.unparse(node)}"
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and not is_self(node.value)
        and node.attr not in own
        and node.attr not in FOREIGN_PRIVATES
    ]
    assert wrong == []


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_the_private_names_of_another(name: str) -> None:
    """A private module serves its own package only."""
    wrong = []
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("solvers", "vars_ode"):
            module = str(node.module)
            package = module.rpartition("._")[0]
            if package and not (name == package or name.startswith(f"{package}.")):
                wrong.append(f"{name}:{node.lineno} imports {module}")
            wrong += [f"{name}:{node.lineno} imports {alias.name}" for alias in node.names if private(alias.name)]
    assert wrong == []


def test_every_exception_is_in_use() -> None:
    attributes = {node.attr for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert FOREIGN_PRIVATES.keys() <= attributes
