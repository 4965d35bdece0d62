"""What FAM knows of one parameter, and how sharded and complex tensors become plain local ones.

Every update is elementwise, so a DTensor is updated through its local shard: no rule of the DTensor dispatcher is
needed and nothing is gathered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .spectra import WINDOWS, window_geometry


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or a DTensor's local shard; complex numbers as pairs of reals."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is not None:
        tensor = to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def shard_groups(parameter: Tensor) -> tuple[Any, ...]:
    """The process groups over which a DTensor's pieces are spread; none for a plain tensor."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return ()
    mesh: Any = getattr(parameter, "device_mesh")  # noqa: B009 (a DTensor's; Tensor does not declare it)
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_shard())


class Entry:
    """One tracked parameter: where its gradient is read, and (`geometry`) what of it is analysed."""

    __slots__ = ("geometry", "group", "name", "parameter", "plain", "process_groups")

    def __init__(self, parameter: Tensor, group: int, name: str, axis: str) -> None:
        self.parameter, self.group, self.name = parameter, group, name
        self.process_groups = shard_groups(parameter)
        self.plain = not hasattr(parameter, "to_local") and not parameter.is_complex()
        self.geometry = window_geometry(tuple(local(parameter).shape), *WINDOWS[axis])

    def tensor(self) -> Tensor:
        """The parameter's local, real values (not cached: sharded parameters may be given new storage)."""
        return self.parameter if self.plain else local(self.parameter)

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient's local, real values.

        Raises:
            RuntimeError: for sparse gradients.
        """
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{self.name}: FAM does not support sparse gradients (layout {grad.layout}); "
                "use sparse=False in the embedding, or torch.optim.SparseAdam for this parameter"
            )
        if self.plain:
            return grad
        placements = getattr(self.parameter, "placements", None)
        if placements is not None and getattr(grad, "placements", placements) != placements:
            grad = grad.redistribute(placements=placements)  # type: ignore[attr-defined]
        return local(grad)
