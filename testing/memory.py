"""Memory: how many bytes a forward and backward allocate as the sequence grows."""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .subject import Factory, build, noise, run, width


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of every new storage that an operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        for t in tree_iter(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in known:
                self.total += t.untyped_storage().nbytes()
        return out


def allocated(module: torch.nn.Module, length: int) -> int:
    """Bytes allocated by one forward and backward over `length` tokens."""
    x = noise(1, length, width(module)).requires_grad_()
    with AllocatedBytes() as counted:
        run(module, x).sum().backward()
    return counted.total


def memory_exponent(factory: Factory, lengths: tuple[int, int] = (1024, 4096)) -> float:
    """e in bytes ~ lengthᵉ between two lengths."""
    module = build(factory)
    few, many = (allocated(module, length) for length in lengths)
    return math.log(many / few) / math.log(lengths[1] / lengths[0])


def check_linear_memory(factory: Factory, *, limit: float = 1.05, lengths: tuple[int, int] = (1024, 4096)) -> None:
    """Memory grows at most like length^1.05."""
    exponent = memory_exponent(factory, lengths)
    assert exponent <= limit, f"memory grows like length^{exponent:.3f}, more than {limit}"
