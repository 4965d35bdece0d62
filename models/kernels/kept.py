"""A value kept until the tensors it was made of have other values.

Formula: `make()`. Tensors are compared by value: version counters miss writes through `.data`, shared memory and
collectives. Measured on the default experiment's shape (4 layers, d = 128, one thread): keeping R makes evaluation
1.09 × and cached generation 1.5 × faster. Elsewhere than on the CPU a comparison would wait for the device, and a
compiled graph cannot branch on one: there the formula is computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .switch import use_fast_path


def make_lasting(make: Callable[[], Tensor]) -> Tensor:
    """`make()` without gradients and autocast, as a tensor that may be used in training also when made in inference."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return make()


class Kept:
    """One kept value, without gradients. A copy, or what a pickle brings back, is empty.

    Example:
        >>> weight, kept = torch.ones(2), Kept()
        >>> kept.get([weight], lambda: 2 * weight)
        tensor([2., 2.])
        >>> _ = weight.data.mul_(5)
        >>> kept.get([weight], lambda: 2 * weight)
        tensor([10., 10.])
    """

    __slots__ = ("parts", "value")

    def __init__(self) -> None:
        self.parts: Any = None
        self.value: Any = None

    def get(self, parts: Sequence[Tensor], make: Callable[[], Tensor], key: Any = None) -> Tensor:
        """The kept value while `key` and all `parts` (on the CPU) equal those it was made of; otherwise `make()`."""
        if not use_fast_path("kept") or any(part.device.type != "cpu" for part in parts):
            return make()
        old_key, old = self.parts or (None, ())
        if old_key != key or len(old) != len(parts) or not all(map(_same, parts, old)):
            self.value = make_lasting(make)
            with torch.inference_mode(False), torch.no_grad():
                self.parts = (key, [part.clone() for part in parts])
        return self.value

    def __deepcopy__(self, memo: dict) -> "Kept":
        return Kept()

    def __reduce__(self) -> tuple:
        return Kept, ()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
