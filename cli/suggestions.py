"""Suggestions: the nearest valid name of the right kind for one that is none."""

import difflib
import re
from collections.abc import Iterable

from .catalog import KINDS, find_component, lightning_classes, read_components

# Components of torch that configurations often name.
TORCH_OPTIMIZERS = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam",
                    "RAdam", "RMSprop", "Rprop", "SGD")  # fmt: skip
# Last part of an option -> kind of component that it takes.
KIND_OF_KEY = {
    "rotary": "rotary",
    "embedding_rotary": "rotary",
    "attention": "attention",
    "block": "block",
    "position_embedding": "embedding",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "callbacks": "callback",
    "data_class": "data",
    "model_class": "model",
    "logger": "logger",
    "strategy": "strategy",
}
FROM_LIGHTNING = {"callback": "callbacks", "logger": "loggers", "strategy": "strategies"}


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the names among `known` nearest to `name`, joined by "or"; "" where none is near.

    Example:
        >>> nearest("fitt", ["fit", "test"])
        'fit'
    """
    folded = {item.lower(): item for item in known}
    near = difflib.get_close_matches(name.lower(), folded, n=2, cutoff=cutoff)
    # One that is clearly nearer stands alone.
    if len(near) == 2 and difflib.SequenceMatcher(None, name.lower(), near[0]).ratio() > 0.85:
        near = near[:1]
    return " or ".join(folded[item] for item in near)


def kind_of_key(key: str) -> str | None:
    """Return which kind of component an option takes: `callback` for `callbacks.base`; None for none."""
    parts = key.split(".")
    # A slot or the list; `callbacks.base.mode` and `trainer.callbacks.mode` are options of one.
    if parts[-1] == "callbacks" or (parts[-2:-1] == ["callbacks"] and "trainer" not in parts):
        return "callback"
    return KIND_OF_KEY.get(parts[-1])


def class_paths(kind: str) -> dict[str, str]:
    """Return {class name: class path} of the components of a kind, those of torch and Lightning included."""
    components = read_components().get(kind, [])
    paths = {c.name: c.class_path for c in components if c.is_public or kind == "embedding"}
    if kind == "optimizer":
        paths |= {name: f"torch.optim.{name}" for name in TORCH_OPTIMIZERS}
    if kind in FROM_LIGHTNING:
        paths = lightning_classes(FROM_LIGHTNING[kind]) | paths
    return paths


def expand_names(arguments: Iterable[str]) -> list[str]:
    """Return `arguments` with a component's bare name replaced by its class path, where its option takes that kind.

    Example:
        >>> expand_names(["--model.rotary=RoPE", "--run_name=RoPE"])
        ['--model.rotary=cubelet.models.rotary.RoPE', '--run_name=RoPE']
    """
    expanded = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if (
            equals
            and option.startswith("--")
            and value.isidentifier()
            and (kind := kind_of_key(option[2:].removesuffix(".class_path")))
        ):
            argument = f"{option}={class_paths(kind).get(value, value)}"
        expanded.append(argument)
    return expanded


def suggest_component(given: str, key: str) -> str:
    """Return the class path nearest to `given` among those that `key` takes, or ""."""
    kind = kind_of_key(key)
    paths: dict[str, str] = {}
    for each in [kind] if kind else KINDS:
        paths |= class_paths(each)
    name = given.rpartition(".")[2]
    # A long wrong name such as RotaryRoPE: the part of a known one.
    near = nearest(name, paths) or " or ".join([p for p in paths if len(p) > 2 and p.lower() in name.lower()][:2])
    return " or ".join(paths[item] for item in near.split(" or ")) if near else ""


def did_you_mean(message: str, keys: Iterable[str]) -> str:
    """Return a suggestion for the name that a parser's message stumbled over, or "".

    Args:
        message: the whole message of jsonargparse.
        keys: option names of the parser, without dashes.
    """
    key = next(iter(re.findall(r'Parser key "([^"]+)"', message)), "")
    names = r"import path string: ([\w.]+)|class_path '([\w.]+)'|Got value: ([\w.]+)|has no attribute '(\w+)'"
    names += r"|Given value: ([\w.]+)"
    if found := re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)|[Kk]ey '([\w.]+)' is not", message):
        near = nearest(found[1] or found[2], keys, 0.75)
    elif found := re.search(r"[Oo]ption '([\w.]+)' is not accepted", message):
        near = nearest(found[1], _options_near(message), 0.6)
    elif found := re.search(r"invalid choice: '(\w+)' \(choose from (.*)\)", message):
        near = nearest(found[1], re.findall(r"\w+", found[2]))
    elif found := re.search(names, message):
        near = suggest_component(next(g for g in found.groups() if g), key)
    else:
        near = ""
    return f"did you mean {near}?" if near else ""


def _options_near(message: str) -> list[str]:
    """Options of the component that a message speaks of; of all components where it names none of ours."""
    for path in re.findall(r"[\w.]+\.\w+", message):
        component = find_component(path)
        if component is not None:
            return list(component.options)
    return sorted({option for components in read_components().values() for c in components for option in c.options})
