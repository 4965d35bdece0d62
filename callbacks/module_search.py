"""Search of modules and parameters by name pattern or by what they have.

A submodule that appears under several names is found once, under its first name. A pattern with `*`, `?` or `[` is a
glob over the whole qualified name, otherwise a part of the name; one that matches nothing that way is tried as a
regular expression.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that `pattern` selects, in their order (rules in the module's docstring).

    Example:
        >>> match_names("*.rotary.*", ["0.rotary.angles", "0.q.weight"])
        ['0.rotary.angles']
    """
    names = list(names)
    if any(character in pattern for character in "*?["):
        selected = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    else:
        selected = [name for name in names if pattern in name]
    if selected:
        return selected
    try:
        expression = re.compile(pattern)
    except re.error:
        return []
    return [name for name in names if expression.search(name)]


def match_any(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the names that at least one of the patterns selects, in their order."""
    names = list(names)
    selected = {name for pattern in patterns for name in match_names(pattern, names)}
    return [name for name in names if name in selected]


def clean_name(name: str) -> str:
    """Return a qualified name without what wrappers (compile, FSDP, activation checkpointing) put into it."""
    return _WRAPPERS.sub("", name).lstrip(".") if "_" in name else name


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (clean name, submodule), each once; wrappers are passed over in favour of what they wrap."""
    for name, submodule in module.named_modules():
        if not any(_WRAPPERS.fullmatch(child) for child in submodule._modules):
            yield clean_name(name), submodule


def modules_with(module: nn.Module, *attributes: str) -> dict[str, nn.Module]:
    """Return the submodules that have all the attributes, by clean name.

    Attributes are looked up on the instance without catching errors, so a broken property shows itself.
    """
    return {
        name: submodule
        for name, submodule in named_modules(module)
        if all(hasattr(submodule, attribute) for attribute in attributes)
    }


def to_float(value: Any) -> float:
    """Return a number, or the mean of a tensor, as a host float; a synchronisation on an accelerator, so rare."""
    return float(value.detach().float().mean()) if isinstance(value, torch.Tensor) else float(value)
