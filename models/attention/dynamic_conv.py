"""Dynamic convolution beside attention: each token weighs its own last few values.

Wu et al. 2019, https://arxiv.org/abs/1901.10430: a depthwise convolution whose kernel, one per head, is a softmax over
taps of a linear map of the token. Here it runs over the values that attention reads, and both are blended per head by a
learned share σ(g). Choices:

- Causal: the taps are the token and the taps − 1 before it, with zeros before the first (no renormalisation, so a
  prefix stands alone). Not causal: centred taps.
- The values in attention's cache serve the convolution; it needs no cache of its own.
- A loop over the few taps: `unfold` would copy every value `taps` times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.models.bounded import share
from cubelet.models.linear import Linear

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention


def dynamic_conv(v: Tensor, kernel: Tensor, ahead: int = 0, documents: Tensor | None = None) -> Tensor:
    """y_t = Σ_n kernel_t,n · v_{t + ahead − n} for the last rows of v, zeros outside.

    Args:
        v: (b, h, n ≥ s, c). kernel: (b, h, s, taps), of the last s rows.
        ahead: how far the first tap looks into the future.
        documents: (b, n) integers; rows of another number count as zeros.
    """
    length, taps = kernel.shape[2], kernel.shape[3]
    rows = F.pad(v, (0, 0, taps - 1 - ahead, ahead))
    start = rows.shape[2] - length - taps + 1
    ids = None if documents is None else F.pad(documents, (taps - 1 - ahead, ahead))  # (b, n + taps − 1)
    y = torch.zeros_like(v[:, :, v.shape[2] - length :])
    for tap in range(taps):
        begin = start + taps - 1 - tap
        weight = kernel[..., tap : tap + 1]  # (b, h, s, 1)
        if documents is not None and ids is not None:
            same = ids[:, begin : begin + length] == documents[:, documents.shape[1] - length :]  # (b, s)
            weight = weight.masked_fill(~same[:, None, :, None], 0.0)
        y = y + weight * rows[:, :, begin : begin + length]
    return y


class DynamicConvAttention(ProjectedAttention):
    """(1 − σ(g)) · attention + σ(g) · dynamic convolution, per head.

    Args:
        taps: tokens under the kernel, the current one included; odd where not causal.
        options: see `ProjectedAttention`.

    Example:
        >>> DynamicConvAttention(32, 4, taps=3)(torch.randn(1, 7, 32)).shape
        torch.Size([1, 7, 32])
    """

    accepts_context = False

    def __init__(self, dims: int, heads: int, *, taps: int = 5, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        if taps < 1 or (not self.causal and taps % 2 == 0):
            raise ValueError(f"taps {taps} must be at least 1, and odd where causal=False (the kernel is centred)")
        self.taps = taps
        self.kernel = Linear(dims, heads * taps)
        self.share = nn.Parameter(torch.zeros(heads))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.kernel.reset_parameters()
        nn.init.zeros_(self.share)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        far = masked_attention(q, k, v, scope, dropout=self.dropout if self.training else 0.0)
        kernel = self.kernel(x).unflatten(-1, (self.heads, self.taps)).softmax(-1).to(v.dtype)  # (b, s, h, taps)
        kernel = kernel.transpose(1, 2)  # (b, h, s, taps)
        if scope.key_mask is not None:
            v = v.masked_fill(~scope.key_mask[:, None, :, None], 0.0)
        if self.kv_heads != self.heads:
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)  # (b, h, s_k, c)
        near = dynamic_conv(v, kernel, 0 if self.causal else self.taps // 2, scope.key_documents)
        part = share(self.share)[:, None, None].to(far.dtype)
        return far + part * (near - far)
