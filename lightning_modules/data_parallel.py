"""Data parallel training: DDP whose buffers are synchronised once, at the start."""

import inspect
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


class DataParallel(DDPStrategy):
    """DDP for models whose buffers change by decisions that every rank makes alike.

    Rotary bases, index tables and Q tables change by losses that are averaged over ranks, so a broadcast before every
    forward would move nothing but time, and a mistake there would be papered over instead of showing. Torch 2.13 has a
    new name for the switch, and warns of the old one.

    Args:
        gradient_as_bucket_view: gradients are views of DDP's buckets, which saves a copy of them.
        broadcast_buffers: send rank 0's buffers to all before every forward.
        options: see `lightning.pytorch.strategies.DDPStrategy`.

    Example:
        >>> strategy = DataParallel(process_group_backend="gloo")
    """

    def __init__(self, gradient_as_bucket_view: bool = True, broadcast_buffers: bool = False, **options: Any) -> None:
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options.setdefault(switch, broadcast_buffers)
        super().__init__(gradient_as_bucket_view=gradient_as_bucket_view, **options)
