"""Components as plain data: how a class, or a `functools.partial` of one, is written into a checkpoint and read back.

A checkpoint that pickles a class can only be loaded with `weights_only=False`, and breaks when the class moves. So
hyper-parameters hold `{"class_path": "package.Class", "init_args": {...}}`, the form the YAML files use too, whether
the model was built by the command line or in Python. What cannot be named (a lambda) is stored under its display name,
and loading such a checkpoint asks for it by name instead of silently taking a default.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

PLAIN = (str, int, float, bool, type(None))


def unwrap(value: Any) -> Any:
    """`functools.partial(Class, …)` for the partial jsonargparse wraps around its own instantiator, recursively."""
    if isinstance(value, functools.partial):
        target, options = value.func, {k: unwrap(v) for k, v in value.keywords.items()}
        if value.args and getattr(target, "__module__", "").startswith("jsonargparse"):
            target = value.args[-1]  # partial(call, instantiator, Class, **options)
        elif value.args:
            return value
        return functools.partial(target, **options)
    if isinstance(value, (list, tuple)):
        return [unwrap(v) for v in value]
    return value


def to_config(value: Any) -> Any:
    """Return plain data (str, numbers, bool, None, lists, dicts) that `from_config` turns back into `value`.

    Args:
        value: plain data, a class or function, a `functools.partial` of one with keyword arguments, an instance of a
            dataclass, or lists and mappings of those.

    Raises:
        TypeError: a value of another kind; the message names it.

    Example:
        >>> to_config(functools.partial(Mapping, size=3))
        {'class_path': 'collections.abc.Mapping', 'init_args': {'size': 3}}
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    if isinstance(value, Mapping):
        return {k if isinstance(k, int) else str(k): to_config(v) for k, v in value.items()}
    if isinstance(value, functools.partial):
        if value.args:
            raise TypeError(f"{value!r} fixes positional arguments, which cannot be stored by name; use keywords")
        inner = to_config(value.func)
        return {**inner, "init_args": {**inner.get("init_args", {}), **to_config(value.keywords)}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # an object, not a recipe: a `Scaling`
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {**to_config(type(value)), "init_args": to_config(fields), "instance": True}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"class_path": f"{value.__module__}.{value.__qualname__}"}
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be stored in a checkpoint as plain data")


def import_object(path: str) -> Any:
    """Import `package.module.Name`.

    Raises:
        ImportError: with the path, and what to do where the component was made by hand.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(
            f"component {path!r} cannot be imported ({error}). If it was defined in a notebook or as a lambda, pass it "
            "again by keyword, for example LanguageModel.load_from_checkpoint(path, rotary=MyRotary)"
        ) from error


def from_config(value: Any) -> Any:
    """Invert `to_config`: specs become classes or partials, everything else is returned as it is.

    Example:
        >>> from_config({"class_path": "torch.nn.Linear", "init_args": {"bias": False}})(3, 2)
        Linear(in_features=3, out_features=2, bias=False)
    """
    if isinstance(value, Mapping) and "class_path" in value:
        target = import_object(value["class_path"])
        arguments = {k: from_config(v) for k, v in (value.get("init_args") or {}).items()}
        if value.get("instance"):
            return target(**arguments)
        return functools.partial(target, **arguments) if arguments else target
    if isinstance(value, list):
        return [from_config(v) for v in value]
    return value
