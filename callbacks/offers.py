"""What a module may offer to these callbacks, and how to find it.

The callbacks never import a model. They look for small offers (attributes and methods, written down here as
protocols), so that they attach to anybody's LightningModule. A submodule that appears under several names is found
once, under its first name. Name patterns are understood in three steps: with `*`, `?` or `[` as a glob over the whole
qualified name, otherwise as a part of the name; a pattern that matches nothing that way is tried as a regular
expression.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class OffersBase(Protocol):
    """A rotary whose base may move: `base` is a number or 0-dim tensor, `set_base` writes it in place."""

    base: Any

    def set_base(self, base: float) -> None: ...


@runtime_checkable
class OffersWindow(Protocol):
    """An attention whose local window (tokens, an int) may move."""

    window: int

    def set_window(self, window: int) -> None: ...


@runtime_checkable
class OffersSpan(Protocol):
    """An attention whose span scale (0 … 1, a number or tensor) may move."""

    span: Any

    def set_span(self, span: Any) -> None: ...


@runtime_checkable
class OffersMixing(Protocol):
    """A rotary with a position-independent factor R: `mixing()` gives (c, c), or None where there is none."""

    base: Any

    def mixing(self) -> Tensor | None: ...


@runtime_checkable
class OffersSamples(Protocol):
    """A module that continues a text."""

    def sample_text(
        self, prompt: str, max_new_tokens: int, *, temperature: float, top_k: int | None, seed: int
    ) -> str: ...


@runtime_checkable
class OffersSpectra(Protocol):
    """An optimizer that tells, per analysed tensor, its name, handler, alpha, base_alpha, bands and step."""

    def spectrum_summary(self) -> list[dict[str, Any]]: ...


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that `pattern` selects, in their order (rules in the module's docstring)."""
    names = list(names)
    if any(character in pattern for character in "*?["):
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    else:
        found = [name for name in names if pattern in name]
    if found:
        return found
    try:
        expression = re.compile(pattern)
    except re.error:
        return []
    return [name for name in names if expression.search(name)]


def any_matches(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names that at least one of the patterns selects, in their order."""
    names = list(names)
    chosen = {name for pattern in patterns for name in matches(pattern, names)}
    return [name for name in names if name in chosen]


_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")


def clean(name: str) -> str:
    """A qualified name without what wrappers (compile, FSDP, activation checkpointing) put into it."""
    return _WRAPPERS.sub("", name).lstrip(".") if "_" in name else name


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(clean name, submodule), each once; wrappers are passed over in favour of what they wrap."""
    for name, submodule in module.named_modules():
        if not any(_WRAPPERS.fullmatch(child) for child in submodule._modules):
            yield clean(name), submodule


def offering(module: nn.Module, *attributes: str) -> dict[str, nn.Module]:
    """Submodules that have all the attributes, by clean name.

    Attributes are looked up on the instance without catching errors, so a broken property shows itself.
    """
    return {
        name: submodule
        for name, submodule in named_modules(module)
        if all(hasattr(submodule, attribute) for attribute in attributes)
    }


def number(value: Any) -> float:
    """A host float from a number or a tensor (its mean); a synchronisation on an accelerator, so for rare use."""
    return float(value.detach().float().mean()) if isinstance(value, torch.Tensor) else float(value)
