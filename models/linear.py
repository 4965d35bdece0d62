"""Linear layers that draw their weights once, with the deviation this project uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.models.kernels.switch import full_precision


class Linear(nn.Linear):
    """`nn.Linear` with normal weights of deviation scale · in_features^−½ and a constant bias.

    Args:
        in_features, out_features, bias: see `nn.Linear`.
        scale: factor on the deviation; 0 starts at zero.
        bias_value: of every bias at the start, or one for each.

    Example:
        >>> Linear(8, 2, bias_value=3.0).bias.tolist()
        [3.0, 3.0]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale: float = 1.0,
        bias_value: float | Sequence[float] = 0.0,
    ) -> None:
        self.scale, self.bias_value = scale, bias_value  # before super(): nn.Linear draws in its constructor
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weight, set the bias."""
        if self.scale:
            nn.init.normal_(self.weight, std=self.scale * self.in_features**-0.5)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(torch.tensor(self.bias_value, device=self.bias.device))


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, (…, in) → (…, out), in at least float32 whatever autocast says: rounding would turn gates over."""
    weight, bias = layer.weight, layer.bias
    with full_precision(x.device):
        if x.dtype is not torch.float32 or weight.dtype is not torch.float32:  # else three calls for nothing
            wide = torch.promote_types(x.dtype, torch.float32)
            x, weight, bias = x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
        return F.linear(x, weight, bias)
