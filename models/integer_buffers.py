"""Buffers of natural numbers (index tables, sizes, counters) that survive an averaging of buffers.

Averaging callbacks (EMA, SWA with `use_buffers=True`) average every buffer: of whole numbers they compute v·d + v·(1−d)
and cut off what stands behind the point, so that an index 7 becomes 6. Here a number is held as its binary digits, each
a float 0 or 1: no average of equal digits, in whatever precision, makes another number of them. Where the number moved
while it was averaged (a window that follows the loss), what is read is the rounded mean of the numbers there were,
never one outside them. It stays a buffer, so devices, DDP, casts and meta-device construction treat it like any other,
and a state_dict holds plain numbers under the plain name.
"""

from __future__ import annotations

from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

BITS = 24
NEAR = 0.1  # of 0 or 1: a digit that is rounded by averages in half precision, or hardly begun to change


def encode(numbers: Tensor) -> Tensor:
    """Return the binary digits of natural numbers below 2²⁴: (...) → (..., 24) float32."""
    places = torch.arange(BITS, device=numbers.device)
    return (numbers.long().unsqueeze(-1) >> places & 1).float()


def decode(digits: Tensor) -> Tensor:
    """Return the numbers of binary digits: (..., 24) → (...) int64."""
    places = torch.arange(BITS, device=digits.device)
    bits = (digits > 0.5).long()
    number = (bits << places).sum(-1)
    is_one = ((digits - bits).abs() < NEAR).all(-1)  # not a mean of several numbers
    return torch.where(is_one, number, (digits.double() * 2.0**places).sum(-1).round().long())


class IntegerBuffer:
    """Descriptor of a buffer of natural numbers; the buffer itself is called `NAME_digits`.

    Args:
        persistent: whether state_dicts hold it.

    Example:
        >>> class Pick(nn.Module):
        ...     order = IntegerBuffer()
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.order = torch.tensor([2, 0, 1])
        >>> module = Pick()
        >>> module.order.tolist(), module.state_dict()["order"].tolist()
        ([2, 0, 1], [2, 0, 1])
    """

    def __init__(self, persistent: bool = True) -> None:
        self.persistent = persistent

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.digits = name, f"{name}_digits"

    @overload
    def __get__(self, module: None, owner: type) -> IntegerBuffer: ...
    @overload
    def __get__(self, module: nn.Module, owner: type) -> Tensor: ...
    def __get__(self, module: nn.Module | None, owner: type) -> IntegerBuffer | Tensor:
        return self if module is None else decode(getattr(module, self.digits))

    def __set__(self, module: nn.Module, value: Tensor) -> None:
        digits = encode(value)
        present = module._buffers.get(self.digits)
        if present is not None and present.shape == digits.shape and not present.is_meta:
            present.copy_(digits)  # in place: DDP and others hold the tensor
        elif present is not None:
            module._buffers[self.digits] = digits
        else:
            module.register_buffer(self.digits, digits, persistent=self.persistent)
            if self.persistent:
                module.register_state_dict_post_hook(partial(_write_plain, name=self.name))
                module.register_load_state_dict_pre_hook(partial(_read_plain, name=self.name))


def _write_plain(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, *, name: str) -> None:
    state[prefix + name] = decode(state.pop(f"{prefix}{name}_digits"))


def _read_plain(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any, name: str) -> None:
    if prefix + name in state:
        state[f"{prefix}{name}_digits"] = encode(state.pop(prefix + name))
