"""A depthwise convolution over the last few tokens, and the block that has one before attention and MLP.

Mixing a token with the two before it, channel by channel, costs almost nothing and lets every layer see local patterns
without spending an attention head on them (Primer, So et al. 2021, https://arxiv.org/abs/2109.08668; "canon layers",
Allen-Zhu 2025, https://ssrn.com/abstract=5240330). On the default experiment it is worth more than any other part
tried; the README has the numbers. Kernels start as the identity, so an untrained block is a plain `ResidualBlock`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_at_least
from cubelet.models.attention.base import zero_padding
from cubelet.models.cache import CacheGroup, LayerCache
from cubelet.models.kernels.shift_sum import shift_sum

from .residual import ResidualBlock


class ShortConv(nn.Module):
    """Depthwise convolution over `taps` tokens, the current one with weight 1.

    Args:
        dims: channels d.
        taps: tokens that reach an output, itself included; at least 2.
        causal: the token and the taps − 1 before it; otherwise as many to each side (taps odd).

    Raises:
        ValueError: fewer than 2 taps; an even number of centred ones.

    Example:
        >>> ShortConv(8, taps=3)(torch.ones(1, 4, 8)).shape
        torch.Size([1, 4, 8])
    """

    def __init__(self, dims: int, taps: int = 3, *, causal: bool = True) -> None:
        super().__init__()
        check_at_least("taps", taps, 2, "with 1 a convolution sees the token itself only")
        if not causal and taps % 2 == 0:
            raise ValueError(f"taps {taps} must be odd where causal=False: the convolution is centred")
        self.taps, self.ahead = taps, 0 if causal else taps // 2
        self.kernel = nn.Parameter(torch.zeros(taps - 1, dims))

    def reset_parameters(self) -> None:
        """The identity: no weight on other tokens."""
        nn.init.zeros_(self.kernel)

    def forward(self, x: Tensor, *, documents: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """(b, s, d) → (b, s, d); the cache holds the taps − 1 inputs before x."""
        length = x.shape[1]
        if cache is not None:
            rows, _ = cache.update(x.unsqueeze(1), documents=documents)
            x, documents = rows.squeeze(1), cache.documents  # (b, kept + s, d)
        y = shift_sum(x, self.kernel.to(x.dtype), ahead=self.ahead, documents=documents)
        return y if cache is None else y[:, x.shape[1] - length :]

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        """An empty cache of the last taps − 1 inputs."""
        shapes, where = [(1, self.kernel.shape[1])], {"device": self.kernel.device, "dtype": self.kernel.dtype}
        return LayerCache(batch_size, max_length, shapes, window=self.taps, **where)


class ShortConvBlock(ResidualBlock):
    """A `ResidualBlock` whose attention and MLP read their input through a `ShortConv`.

    Args:
        taps: tokens that reach an output of a convolution, see `ShortConv`.
        causal, options: see `ResidualBlock`.

    Example:
        >>> x, cost = ShortConvBlock(32, 4, taps=3)(torch.randn(2, 5, 32))
        >>> x.shape
        torch.Size([2, 5, 32])
    """

    accepts_rows = False  # the MLP's convolution reads what attention adds to the neighbours

    def __init__(self, dims: int, heads: int, *, taps: int = 3, causal: bool = True, **options: Any) -> None:
        super().__init__(dims, heads, causal=causal, **options)
        self.attention_conv = ShortConv(dims, taps, causal=causal)
        self.mlp_conv = ShortConv(dims, taps, causal=causal)

    def attention_input(self, x: Tensor, key_mask: Tensor | None, documents: Tensor | None, cache: Any) -> Tensor:
        # A norm with a bias writes into padded rows, and so does attention: no token may read them.
        h = zero_padding(super().attention_input(x, key_mask, documents, cache), key_mask)
        return self.attention_conv(h, documents=documents, cache=cache and cache.parts[1])

    def mlp_input(self, x: Tensor, key_mask: Tensor | None, documents: Tensor | None, cache: Any) -> Tensor:
        h = zero_padding(super().mlp_input(x, key_mask, documents, cache), key_mask)
        return self.mlp_conv(h, documents=documents, cache=cache and cache.parts[2])

    def split_cache(self, cache: Any) -> tuple[Any, Any]:
        return super().split_cache(cache.parts[0])

    def new_cache(self, batch_size: int, max_length: int) -> CacheGroup:
        convs = (conv.new_cache(batch_size, max_length) for conv in (self.attention_conv, self.mlp_conv))
        return CacheGroup(super().new_cache(batch_size, max_length), *convs)
