"""Which rooms may import which, read from the source: arrows point downward only, and nothing imports in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each room may import of the others; `compare` gets the function that starts a run handed in.
BELOW = {
    "common": set(),
    "models": {"common"},
    "optimizers": {"common"},
    "datamodules": {"common"},
    "callbacks": {"optimizers", "common"},
    "lightning_modules": {"datamodules", "models", "optimizers", "common"},
    "compare": {"lightning_modules", "datamodules", "callbacks", "models", "optimizers", "common"},
    "testing": {"lightning_modules", "datamodules", "callbacks", "models", "optimizers", "common"},
    "cli": {"testing", "compare", "lightning_modules", "datamodules", "callbacks", "models", "optimizers", "common"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in BELOW
    for path in (ROOT / room).rglob("*.py")
}


def resolve(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The absolute name behind `from … import`, without the package's own name."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")


def imports(module: str, everywhere: bool = True) -> set[str]:
    """Names of modules that a module imports; with `everywhere` inside functions too, never for type checkers only."""
    path = FILES[module]
    found = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve(module, path, node)
            # `from package import module` imports the module; its package is there already where both lie in it.
            below = {f"{origin}.{a.name}" for a in node.names if f"{origin}.{a.name}".removeprefix("cubelet.") in FILES}
            found.update(below)
            if len(below) < len(node.names):
                found.add(origin)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return {name.removeprefix("cubelet.") for name in found}


@pytest.mark.parametrize("room", BELOW)
def test_arrows_point_downward(room):
    wrong = {
        f"{module} imports {name}"
        for module in FILES
        if module.split(".")[0] == room
        for name in imports(module)
        if name.split(".")[0] in BELOW and name.split(".")[0] not in BELOW[room] | {room}
    }
    assert not wrong


@pytest.mark.parametrize("room", ["common", "models", "optimizers"])
def test_the_lower_floors_know_nothing_of_lightning(room):
    wrong = {
        f"{module} imports {name}"
        for module in FILES
        if module.split(".")[0] == room
        for name in imports(module)
        if name.split(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric", "jsonargparse")
    }
    assert not wrong


def test_nothing_imports_in_a_circle():
    graph = {
        module: {name for name in imports(module) if name in FILES and name != module}
        # A module needs the packages above it as well, unless it lies in them.
        | {parent for name in imports(module) for parent in parents(name) if not f"{module}.".startswith(f"{parent}.")}
        for module in FILES
    }
    assert circle(graph) is None


def parents(name: str) -> set[str]:
    parts = name.split(".")
    return {package for i in range(1, len(parts)) if (package := ".".join(parts[:i])) in FILES}


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Some circle of a graph, or None: what is left when nodes without arrows are taken away again and again."""
    graph = {node: set(arrows) for node, arrows in graph.items()}
    while leaves := {node for node, arrows in graph.items() if not arrows & graph.keys()}:
        graph = {node: arrows for node, arrows in graph.items() if node not in leaves}
    if not graph:
        return None
    path = [min(graph)]
    while path[-1] not in path[:-1]:
        path.append(min(graph[path[-1]] & graph.keys()))
    return path[path.index(path[-1]) :]


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
