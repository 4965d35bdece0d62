"""Names of options, keys of configuration files and names of components, checked before torch is imported.

What a class takes is read from its source; classes that are not this package's are left to the parser.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError
from cubelet.common.shipped_files import PACKAGE
from cubelet.common.strict_yaml import key_line

from .catalog import KINDS, find_component, options_of, read_classes, trainer_options
from .config_files import is_inline, last_value
from .fit_help import ALL, DEFAULT_CLASSES
from .suggestions import class_paths, kind_of_key, nearest, suggest_component

# Keys under `callbacks:`; each takes any Callback or null.
CALLBACK_SLOTS = (
    "progress",
    "seed",
    "checkpoint",
    "last",
    "rate",
    "cycler",
    "base",
    "window",
    "span",
    "refiner",
    "fam",
    "rotation",
    "samples",
    "attention",
    "guard",
    "summary",
    "measure",
)
OWN = ("seed_everything", "trainer", "model", "data", "callbacks", "run_name", "model_class", "data_class", "ckpt_path")
OWN += ("weights_only", "config", "init_from", "override")
OF_COMMAND = {
    "validate": ("verbose",),
    "test": ("verbose",),
    "predict": ("return_predictions", "prompts", "generation"),
}
ON_THE_LINE = ("print_config", ALL.removeprefix("--"), "help")
Configs = Sequence[tuple[str, dict[str, Any]]]


def check_options(command: str, arguments: Sequence[str], configs: Configs) -> None:
    """Raise for the first option or key that there is not.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        arguments: of it.
        configs: (file, content) of those that `arguments` name.

    Raises:
        ConfigError: with the file and line where it stands in one, and the nearest valid name.
    """
    known = known_options(command, arguments, configs)
    classes = dict(DEFAULT_CLASSES)
    for name, content in configs:
        # A file's options are those of the class that it is for: others are set aside later, or fail there.
        classes |= {section: str(content.get(f"{section}_class", path)) for section, path in classes.items()}
        known = {key: names for key, names in known.items() if key not in classes}
        known |= {section: options for section in classes if (options := class_options(section, classes[section]))}
        for keys, value in _leaves(content):
            if fault := check_key(keys, known) or check_value(keys, value):
                place = "--config" if is_inline(name) else f"{name}, line {key_line(Path(name), keys)}"
                raise ConfigError(f"{place}: {fault}")
    known = known_options(command, arguments, configs)
    line = {**known, "": (*known[""], *ON_THE_LINE)}
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if not option.startswith("--"):
            continue
        keys = tuple(option.removesuffix("+")[2:].split("."))
        if fault := check_key(keys, line, "--") or (check_value(keys, value, "--") if equals else None):
            raise ConfigError(fault)


def known_options(command: str, arguments: Sequence[str], configs: Configs) -> dict[str, tuple[str, ...]]:
    """Return {section: names}, "" for the top; a section whose class is not ours is left out."""
    known = {"": (*OWN, *OF_COMMAND.get(command, ())), "callbacks": CALLBACK_SLOTS, "trainer": trainer_options()}
    for section, default in DEFAULT_CLASSES.items():
        known[section] = class_options(section, str(last_value(f"{section}_class", arguments, configs) or default))
    return {section: names for section, names in known.items() if names}


def class_options(section: str, path: str) -> tuple[str, ...]:
    """Return the options of a model's or data's class, () where it is not this package's."""
    classes = read_classes(PACKAGE / KINDS[section][0])
    name = path.rpartition(".")[2]
    return tuple(options_of(name, classes)) if path.startswith("cubelet.") and name in classes else ()


def check_key(keys: tuple[str, ...], known: Mapping[str, tuple[str, ...]], dashes: str = "") -> str | None:
    """Return a sentence where the first or second part of a key is unknown, else None."""
    if keys[0] not in known[""]:
        everything = [*known[""], *(f"{s}.{n}" for s, names in known.items() if s for n in names)]
        near = nearest(".".join(keys), everything, 0.7) or nearest(keys[0], known[""], 0.6)
        # An option of a section, given without it: --dims for --model.dims.
        near = near or " or ".join(item for item in everything if item.rpartition(".")[2] == keys[-1])
        return _unknown(keys, dashes, near, "an option")
    if len(keys) > 1 and keys[0] in known and keys[1] not in (*known[keys[0]], "help"):
        near = nearest(keys[1], known[keys[0]], 0.55)
        near = " or ".join(f"{keys[0]}.{item}" for item in near.split(" or ")) if near else ""
        return _unknown(keys[:2], dashes, near, f"an option of {keys[0]}")
    return None


def check_value(keys: tuple[str, ...], value: Any, dashes: str = "") -> str | None:
    """Return a sentence where a component's name, or an option of a component, is unknown; else None."""
    key = ".".join(keys)
    kind = kind_of_key(key.removesuffix(".class_path"))
    if kind is None or keys[0] not in ("model", "callbacks", "trainer"):
        return None
    if isinstance(value, list):  # one for each layer
        return next((fault for one in value if (fault := check_value(keys, one, dashes))), None)
    path = value.get("class_path") if isinstance(value, Mapping) else value
    if isinstance(path, str) and path.isidentifier() and path not in ("null", "None", "true", "false", "auto"):
        if dashes and path in class_paths(kind):
            return None  # a bare name is expanded on the command line
        if kind in ("strategy", "logger") and not path[0].isupper():
            return None  # names of their own, such as ddp
        near = suggest_component(path, key)
        return f"{dashes}{key}={path} is no class path; " + (f"did you mean {near}?" if near else "see cubelet list")
    component = find_component(path) if isinstance(path, str) and path.startswith("cubelet.") else None
    for option in (value.get("init_args") or {}) if component and isinstance(value, Mapping) else ():
        if component is not None and option not in component.options:
            near = nearest(option, component.options, 0.55)
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(component.options)}"
            return f"{key}.init_args.{option} is not an option of {component.name}; {hint}"
    return None


def _unknown(keys: tuple[str, ...], dashes: str, near: str, what: str) -> str:
    if near:
        hint = f"did you mean {' or '.join(dashes + item for item in near.split(' or '))}?"
    else:
        hint = "cubelet fit --help shows them"
    return f"{dashes}{'.'.join(keys)} is not {what}; {hint}"


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys at the top and one below it, with their values: what this module can judge."""
    for key, value in content.items():
        yield (str(key),), value
        if isinstance(value, Mapping):
            for below, item in value.items():
                yield (str(key), str(below)), item
