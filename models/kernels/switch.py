"""The switch of all fast paths: on in eager code, off under torch.compile, which fuses the formulas itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ALL = "all"
_off: set[str] = set()


def is_switched_off(name: str) -> bool:
    """Whether `formulas_only` switched off the fast path `name`; for those that serve compiled graphs."""
    return _ALL in _off or name in _off


def use_fast_path(name: str) -> bool:
    """Whether the fast path `name` is to be taken: eager code, and not switched off by `formulas_only`."""
    return not torch.compiler.is_compiling() and not is_switched_off(name)


@contextmanager
def formulas_only(*names: str) -> Iterator[None]:
    """Switch fast paths off inside a `with`; without names, all of them.

    Example:
        >>> with formulas_only("rms_norm"):
        ...     use_fast_path("rms_norm"), use_fast_path("short_conv")
        (False, True)
    """
    added = set(names or (_ALL,)) - _off
    _off.update(added)
    try:
        yield
    finally:
        _off.difference_update(added)
