"""Options of the data class: those a configuration has for another class are set aside, and its contract is checked."""

import inspect
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from cubelet.common.errors import ConfigError

from .config_files import OPTIONS, config_values

VOCABULARY = (
    "a data class for a language model says its number of tokens when it is built: set self.vocab_size in its "
    "constructor (docs/components.md)"
)


def set_aside(
    arguments: Sequence[str], configs: Sequence[tuple[str, dict[str, Any]]], kind: type, default: str
) -> list[str]:
    """Return `arguments` without the `data` options that a configuration has for another data class.

    Args:
        arguments: of the command; the names of configurations are resolved.
        configs: (name, content) of each, as `read_configs` gives them.
        kind: the data class in force.
        default: import path of the class that is meant where a configuration names none.
    """
    arguments = list(arguments)
    parameters = inspect.signature(kind).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    of = default
    for (place, _), (name, content) in zip(config_values(arguments), configs, strict=True):
        of = str(content.get("data_class", of))
        options = content.get("data")
        if of.rpartition(".")[2] == kind.__name__ or not isinstance(options, dict):
            continue
        foreign = [key for key in options if key not in parameters]
        if foreign:
            rank_zero_info(
                f"data.{', data.'.join(foreign)} of {name} are options of {of.rpartition('.')[2]}; {kind.__name__} has "
                "none of that name, so they are set aside"
            )
            kept = {key: value for key, value in options.items() if key not in foreign}
            text = yaml.safe_dump({**content, "data": kept}, sort_keys=False)
            option = arguments[place].partition("=")[0]
            arguments[place] = f"{option}={text}" if option in OPTIONS else text
    return arguments


def vocabulary_of(data: Any) -> int:
    """Return the number of tokens of a data module, for the model.

    Raises:
        ConfigError: it does not say.
    """
    size = getattr(data, "vocab_size", None)
    if not isinstance(size, int):
        given = "no vocab_size" if size is None else f"vocab_size {size!r}"
        raise ConfigError(f"{type(data).__name__} has {given}: {VOCABULARY}")
    return size
