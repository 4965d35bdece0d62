"""The mean of a loss over all tokens of a split, exact whatever the precision, the batch size and the number of ranks.

Not a torchmetrics metric and not a buffer: those are cast with the module, and a sum kept in bfloat16 stops growing at
256 times its summand (`precision=bf16-true` turned a validation loss of 4.17 into 8.0 that way).
"""

from typing import Any

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Widest type for sums on a device: float64, or float32 where there is no other."""
    return torch.float32 if device.type == "mps" else torch.float64


class TokenMean:
    """A sum of losses and of the tokens they were taken over.

    Example:
        >>> mean = TokenMean()
        >>> mean.update(torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor(300))
        >>> mean.update(torch.tensor(5.0), torch.tensor(100))
        >>> mean.compute()
        tensor(2.7500)
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (2,): loss times tokens, tokens

    def update(self, loss: Tensor, count: Tensor) -> None:
        """Add a batch.

        Args:
            loss: mean over the tokens of the batch, 0-dim; looked at only where count is above 0.
            count: number of tokens, 0-dim.
        """
        dtype = sum_dtype(loss.device)
        total = torch.where(count > 0, loss.detach().to(dtype) * count, 0.0)
        sums = torch.stack((total, count.to(dtype)))
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self, strategy: Any = None) -> Tensor:
        """Mean loss a token, 0-dim float32, NaN where there was none; starts over.

        Args:
            strategy: Lightning's; sums over its ranks. Collective then.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            device = torch.device("cpu") if strategy is None else strategy.root_device
            sums = torch.zeros(2, dtype=sum_dtype(device), device=device)
        if strategy is not None:
            sums = strategy.reduce(sums, reduce_op="sum")
        return (sums[0] / sums[1]).float()
