"""What a run's configuration says otherwise than its base: the default experiment, and the defaults of the classes.

A composed configuration holds every option of every component, so most of it is defaults. What the default experiment
names is compared with that; everything else with the signature of the class that takes it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

SECTIONS = {"model": "model_class", "data": "data_class"}  # whose class another key names
DEFAULT_CLASSES = ("cubelet.lightning_modules.LanguageModel", "cubelet.datamodules.TextDataModule")
TRAINER = "lightning.pytorch.Trainer"
# What says where a run writes or how it was started, and nothing about what it does.
PLACES = re.compile(r"(trainer\.default_root_dir|data\.cache_dir|run_name|ckpt_path|config|.*weights_only)$")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of nested mappings; a component without options is its class path.

    Example:
        >>> flatten({"model": {"dims": 8, "rotary": "cubelet.models.rotary.RoPE"}})
        {'model.dims': 8, 'model.rotary.class_path': 'cubelet.models.rotary.RoPE'}
    """
    if not isinstance(value, Mapping) or (not value and prefix):
        return {f"{prefix}.class_path" if _is_class(value) else prefix: value}
    flat: dict[str, Any] = {}
    for key, below in value.items():
        if key == "class_path":
            flat[f"{prefix}.class_path"] = below
        else:
            flat |= flatten(below, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, value of the run, value of the base) for each setting that differs.

    Args:
        config: of the run, composed or not.
        base: of the default experiment, which names only what it sets.
    """
    own, usual = flatten(config), flatten(base)
    changed = [(key, own[key], usual[key]) for key in usual if key in own and not _same(own[key], usual[key])]
    # A component that was taken away has no keys at all; of another class, it has other options.
    gone = [(key, None, usual[key]) for key in usual if key.endswith("class_path") and key not in own]
    classes = {key for key, *_ in [*changed, *gone] if key.endswith("class_path")}
    defaults = dict(class_defaults(config))
    more = [
        (key, own[key], defaults[key])
        for key in own
        if key not in usual and key in defaults and not _same(own[key], defaults[key]) and not PLACES.match(key)
    ]
    added = [
        (key, own[key], None)
        for key in own
        if key.endswith("class_path")
        and key not in usual
        and key not in defaults
        and key not in classes
        and own[key] not in DEFAULT_CLASSES
    ]
    return [*changed, *[row for row in gone if config], *added, *more]


def class_defaults(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, default) for the options of the trainer, the model, the data and every component."""
    for section, option in SECTIONS.items():
        if isinstance(config.get(option), str) and isinstance(config.get(section), Mapping):
            yield from _defaults_of(config[option], section)
    if isinstance(config.get("trainer"), Mapping):
        yield from _defaults_of(TRAINER, "trainer")
    yield from _below(config, "")


def _below(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return
    if isinstance(value.get("class_path"), str):
        yield from _defaults_of(value["class_path"], f"{prefix}.init_args")
    for key, below in value.items():
        yield from _below(below, f"{prefix}.{key}" if prefix else str(key))


def _defaults_of(path: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Defaults of a class and, where it passes options on, of those above it; none where it cannot be imported."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return
    seen = set()
    for cls in inspect.getmro(found) if isinstance(found, type) else (found,):
        try:
            parameters = inspect.signature(vars(cls)["__init__"] if isinstance(cls, type) else cls).parameters
        except (KeyError, ValueError, TypeError):
            continue
        for option in parameters.values():
            if option.name not in seen and option.default is not option.empty:
                seen.add(option.name)
                key = f"{prefix}.{option.name}"
                yield (f"{key}.class_path" if _is_named(option.default) else key), option.default


def _is_named(value: Any) -> bool:
    return isinstance(value, type) or inspect.isfunction(value)


def _same(one: Any, other: Any) -> bool:
    """Whether a value of a file is a default: classes by their last name, since packages pass them on."""
    if _is_named(other) and isinstance(one, str):
        return one.rpartition(".")[2] == other.__name__
    if _is_class(one) and _is_class(other):
        return one.rpartition(".")[2] == other.rpartition(".")[2] and one.split(".")[0] == other.split(".")[0]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    return one == other or str(one) == str(other)


def _is_class(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w]+(\.\w+)*\.[A-Z]\w*", value))


def difference_table(config: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return an HTML table of the settings that differ."""
    rows = [
        f"<tr><td>{escape(key)}</td><td>{escape(str(own))}</td><td>{escape(str(usual))}</td></tr>"
        for key, own, usual in differences(config, base)
    ]
    if not rows:
        return "<p>nothing</p>"
    return f"<table><tr><th>setting</th><th>this run</th><th>base</th></tr>{''.join(rows)}</table>"
