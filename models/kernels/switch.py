"""The switch of all fast paths: on in eager code, off under torch.compile, which fuses the formulas itself.

And the switch of autocast, for what has to be computed in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

ALL = "all"
switched_off: set[str] = set()


def is_switched_off(name: str) -> bool:
    """Whether `formulas_only` switched off the fast path `name`; for those that serve compiled graphs."""
    return ALL in switched_off or name in switched_off


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
    added = set(names or (ALL,)) - switched_off
    switched_off.update(added)
    try:
        yield
    finally:
        switched_off.difference_update(added)


def full_precision(device: torch.device) -> AbstractContextManager:
    """A block without autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):  # entering one costs 10 µs
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
