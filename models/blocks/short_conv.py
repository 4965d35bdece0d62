"""A causal depthwise convolution over the last few tokens, and the block that has one before attention and MLP.

Mixing a token with the two before it, channel by channel, costs almost nothing and lets every layer see local patterns
without spending an attention head on them (Primer, So et al. 2021, https://arxiv.org/abs/2109.08668; "canon layers",
Allen-Zhu 2025, https://ssrn.com/abstract=5240330). On the default experiment it is worth more than any other part
tried; the README has the numbers. Kernels start as the identity, so an untrained block is a plain `ResidualBlock`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.base import blank_padding
from ..cache import CacheGroup, LayerCache
from .residual import ResidualBlock


def shift_sum(x: Tensor, kernel: Tensor) -> Tensor:
    """y_t = x_t + Σᵢ kernelᵢ ⊙ x_{t−1−i}, nothing before the first row.

    Args:
        x: (b, s, d). kernel: (taps − 1, d), the weight of the token i + 1 back in row i.
    """
    y = x.clone()
    length = x.shape[1]
    for i in range(min(kernel.shape[0], length - 1)):
        y[:, i + 1 :].addcmul_(x[:, : length - i - 1], kernel[i])
    return y


class _ShiftSum(torch.autograd.Function):
    """`shift_sum` with its two gradients written as shifts, too: autograd's own pads every slice with zeros first."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return shift_sum(x, kernel)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, kernel = ctx.saved_tensors
        to_x, to_kernel = grad.clone(), torch.zeros_like(kernel)
        length = x.shape[1]
        for i in range(min(kernel.shape[0], length - 1)):
            to_x[:, : length - i - 1].addcmul_(grad[:, i + 1 :], kernel[i])
            to_kernel[i] = (grad[:, i + 1 :] * x[:, : length - i - 1]).sum((0, 1))
        return to_x, to_kernel


class ShortConv(nn.Module):
    """Causal depthwise convolution over `taps` tokens, the current one with weight 1.

    Args:
        dims: channels d.
        taps: tokens that reach an output, itself included; at least 2.

    Raises:
        ValueError: fewer than 2 taps.
    """

    def __init__(self, dims: int, taps: int = 3) -> None:
        super().__init__()
        if taps < 2:
            raise ValueError(f"taps {taps} would only see the token itself; a short convolution needs at least 2")
        self.taps = taps
        self.kernel = nn.Parameter(torch.empty(taps - 1, dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity: no weight on earlier tokens."""
        nn.init.zeros_(self.kernel)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(b, s, d) → (b, s, d); the cache holds the taps − 1 inputs before x."""
        if cache is None:
            return self._convolve(x)
        rows = cache.update(x.unsqueeze(1))[0].squeeze(1)
        return self._convolve(rows)[:, rows.shape[1] - x.shape[1] :]

    def _convolve(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype)
        if torch.compiler.is_compiling():
            # The same sum without in-place slices, which Inductor fuses into one pass.
            padded = F.pad(x, (0, 0, self.taps - 1, 0))
            back = [padded[:, self.taps - 2 - i : self.taps - 2 - i + x.shape[1]] for i in range(self.taps - 1)]
            return x + sum(kernel[i] * rows for i, rows in enumerate(back))
        return _ShiftSum.apply(x, kernel)  # type: ignore[no-any-return]

    def new_cache(self, batch_size: int, max_length: int, **where: Any) -> LayerCache:
        """An empty cache of the last taps − 1 inputs; `where`: device, dtype."""
        where = {k: getattr(self.kernel, k) if v is None else v for k, v in where.items()}
        return LayerCache(batch_size, max_length, [(1, self.kernel.shape[1])], window=self.taps, **where)


class ShortConvBlock(ResidualBlock):
    """A `ResidualBlock` whose attention and MLP read their input through a `ShortConv`.

    Args:
        taps: tokens that reach an output of a convolution, see `ShortConv`.
        others: see `ResidualBlock`.
    """

    def __init__(self, dims: int, heads: int, *, taps: int = 3, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        self.attention_conv = ShortConv(dims, taps)
        self.mlp_conv = ShortConv(dims, taps)

    def attention_input(self, x: Tensor, key_mask: Tensor | None, cache: Any) -> Tensor:
        return self.attention_conv(super().attention_input(x, key_mask, cache), cache and cache.parts[1])

    def mlp_input(self, x: Tensor, key_mask: Tensor | None, cache: Any) -> Tensor:
        # Attention has written into padded rows; the first real token must not read them.
        x = blank_padding(x, key_mask)
        return self.mlp_conv(super().mlp_input(x, key_mask, cache), cache and cache.parts[2])

    def split_cache(self, cache: Any) -> tuple[Any, Any]:
        return super().split_cache(cache and cache.parts[0])

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CacheGroup:
        size = (batch_size, max_length)
        convs = (conv.new_cache(*size, device=device, dtype=dtype) for conv in (self.attention_conv, self.mlp_conv))
        return CacheGroup(super().new_cache(*size, device=device, dtype=dtype), *convs)
