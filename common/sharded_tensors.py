"""Tensors that may be sharded (DTensor), as plain ones; without a check of the class, so that nothing is imported."""

from typing import Any

from torch import Tensor


def to_local(tensor: Any) -> Tensor:
    """Return this rank's part of a sharded tensor, any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def to_full(tensor: Any) -> Tensor:
    """Return a sharded tensor whole, any other as it is. Collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
