"""Components of the package, read from their source files: names, one line each, options.

Reading the syntax instead of importing takes milliseconds and no torch, so lists, suggestions and checks of options
answer before anything heavy is loaded.
"""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

from cubelet.common.shipped_files import PACKAGE

# Kind -> (room, base classes, or the end of a name, that make a class one of this kind).
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rotary": ("models/rotary", ("Rotary",)),
    "attention": ("models/attention", ("Attention",)),
    "block": ("models/blocks", ("*Block",)),
    "embedding": ("models", ("LearnedSinusoidal",)),
    "optimizer": ("optimizers", ("Optimizer", "GroupedOptimizer")),
    "scheduler": ("optimizers", ("LRScheduler", "LambdaLR")),
    "callback": ("callbacks", ("Callback", "Checkpoint", "ProgressBar", "RichProgressBar")),
    "data": ("datamodules", ("LightningDataModule",)),
    "model": ("lightning_modules", ("LightningModule",)),
}
# Bases that others derive from; nothing a configuration would name.
ABSTRACT = {
    "SequenceModule",
    "Rotary",
    "Attention",
    "ProjectedAttention",
    "GroupedOptimizer",
    "LossCallback",
    "LossController",
}


class Component(NamedTuple):
    """A class that a configuration can name.

    Attributes:
        kind: one of `KINDS`.
        name: of the class.
        class_path: the shortest path that imports it.
        summary: first line of its docstring.
        options: names of its constructor's arguments, inherited ones included.
        is_public: whether its room's `__all__` has it.
    """

    kind: str
    name: str
    class_path: str
    summary: str
    options: tuple[str, ...]
    is_public: bool


class ClassSource(NamedTuple):
    """What the source says of a class.

    Attributes:
        module: its dotted path.
        bases: names without packages.
        doc: the whole docstring.
        arguments: of the constructor as {name: default as source, "" for none}.
        passes_on: whether it takes `**options` for its base.
    """

    module: str
    bases: tuple[str, ...]
    doc: str
    arguments: dict[str, str]
    passes_on: bool

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, as one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())


@functools.cache
def read_components() -> dict[str, list[Component]]:
    """Return all components by kind, each list sorted by name."""
    return {kind: _read_kind(kind) for kind in KINDS}


def find_component(name: str) -> Component | None:
    """Return the component with this class path or class name, or None."""
    for components in read_components().values():
        for component in components:
            if name in (component.class_path, component.name):
                return component
    return None


def _read_kind(kind: str) -> list[Component]:
    room, roots = KINDS[kind]
    classes = read_classes(PACKAGE / room)
    package = "cubelet." + room.replace("/", ".")
    public = _public_names(PACKAGE / room / "__init__.py")
    found = []
    for name, source in classes.items():
        line = ancestors(name, classes)
        is_kind = bool(set(roots) & {name, *line}) or any(name.endswith(r[1:]) for r in roots if r[0] == "*")
        if name.startswith("_") or name in ABSTRACT or not is_kind:
            continue
        is_public = name in public
        path = f"{package}.{name}" if is_public else f"{source.module}.{name}"
        found.append(Component(kind, name, path, source.summary, tuple(options_of(name, classes)), is_public))
    return sorted(found)


@functools.cache
def read_classes(folder: Path) -> dict[str, ClassSource]:
    """Return the classes of all source files under a folder of the package, by name."""
    classes: dict[str, ClassSource] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(("cubelet", *parts)).removesuffix(".__init__")
        classes.update(parse_classes(path, module))
    return classes


def parse_classes(path: Path, module: str) -> dict[str, ClassSource]:
    """Return the classes that stand at the top of one source file."""
    classes = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            bases = tuple(ast.unparse(base).rpartition(".")[2].partition("[")[0] for base in node.bases)
            init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
            doc = ast.get_docstring(node) or ""
            arguments = read_arguments(init.args) if init else {}
            passes_on = init is None or init.args.kwarg is not None
            classes[node.name] = ClassSource(module, bases, doc, arguments, passes_on)
    return classes


def read_arguments(arguments: ast.arguments) -> dict[str, str]:
    """Return {name: default as source, "" for none} of a function's arguments but `self`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {a.arg: ast.unparse(default) if default is not None else "" for a, default in pairs if a.arg != "self"}


def ancestors(name: str, classes: dict[str, ClassSource]) -> list[str]:
    """Return the names of a class's bases, theirs and so on, as far as the sources tell."""
    line: list[str] = []
    waiting = list(classes[name].bases) if name in classes else []
    while waiting:
        base = waiting.pop(0)
        if base not in line:
            line.append(base)
            waiting += classes[base].bases if base in classes else ()
    return line


def options_of(name: str, classes: dict[str, ClassSource]) -> dict[str, str]:
    """Return {argument: default as source} of a constructor; those of bases too, as `**options` passes them on."""
    options: dict[str, str] = {}
    for link in (name, *ancestors(name, classes)):
        source = classes.get(link)
        if source is None:
            break
        options = source.arguments | options if link != name else dict(source.arguments)
        if not source.passes_on:
            break
    return options


def trainer_options() -> tuple[str, ...]:
    """Return the arguments of Lightning's Trainer, read from its source; empty where that cannot be found."""
    return _lightning_class("trainer/trainer.py", "Trainer")


def lightning_classes(package: str) -> dict[str, str]:
    """Return {class name: class path} of what `lightning.pytorch.PACKAGE` exports: callbacks, loggers, …"""
    file = _lightning_file(f"{package}/__init__.py")
    return {name: f"lightning.pytorch.{package}.{name}" for name in sorted(_public_names(file))} if file else {}


def _lightning_class(file: str, name: str) -> tuple[str, ...]:
    path = _lightning_file(file)
    classes = parse_classes(path, "") if path else {}
    return tuple(classes[name].arguments) if name in classes else ()


def _lightning_file(file: str) -> Path | None:
    # `find_spec` of a top-level package imports nothing.
    spec = importlib.util.find_spec("lightning")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place, "pytorch", file)).is_file():
            return path
    return None


def _public_names(init: Path) -> set[str]:
    if not init.is_file():
        return set()
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return {str(e.value) for e in getattr(node.value, "elts", []) if isinstance(e, ast.Constant)}
    return set()
