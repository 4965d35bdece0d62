"""Tensors that may be sharded (DTensor), as plain ones; without a check of the class, so that nothing is imported."""

from typing import Any

from torch import Tensor


def to_local(tensor: Any) -> Tensor:
    """Return this rank's part of a sharded tensor, any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def to_sharded(part: Tensor, like: Any, dim: int) -> Any:
    """Return a tensor of which each rank has another part as a sharded one, the parts side by side along `dim`; itself
    where `like` is not sharded.

    Args:
        part: this rank's, of the same shape on every rank; no copy is made of it.
        like: tensor whose mesh and kind of placement it takes over.
    """
    if not hasattr(like, "to_local"):
        return part
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [Shard(dim) if place.is_shard() else Replicate() for place in like.placements]
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False)


def to_full(tensor: Any) -> Tensor:
    """Return a sharded tensor whole, any other as it is. Collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
