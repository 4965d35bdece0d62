"""Attention whose softmax keeps its sharpness however many keys there are.

Nakanishi 2025, https://arxiv.org/abs/2501.19399: softmax over n keys with scores times s·log n, s learned per head. A
plain softmax spreads as n grows, since every further key takes its share: a head that finds one token among 64 loses
it among 512. With normalised queries and keys, whose scores end at √c, it also lifts that bound. Choices:

- n is the number of keys that the query may see: padding and other documents do not count, so a padded or packed row
  is what it is alone, and a cached step what it is in the whole row.
- The factor goes to the query: the kernel stays torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_at_least

from .masking import AttentionScope
from .multi_head import MultiHeadAttention


class ScalableSoftmaxAttention(MultiHeadAttention):
    """Multi-head attention, scores times s·log(number of keys that the query sees).

    Args:
        start: s at the start, of every head; at 0.43 scores over ten keys are those of plain softmax.
        options: see `MultiHeadAttention`; a bias of its is added behind the factor.

    Raises:
        ValueError: a negative start.

    Example:
        >>> attention = ScalableSoftmaxAttention(32, 4)
        >>> attention(torch.randn(2, 5, 32)).shape, attention.sharpness.shape
        (torch.Size([2, 5, 32]), torch.Size([4]))
    """

    def __init__(self, dims: int, heads: int, *, start: float = 0.43, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        check_at_least("start", start, 0, "larger is sharper")
        self.start = float(start)
        self.sharpness = nn.Parameter(torch.full((heads,), self.start))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.sharpness, self.start)

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        logs = scope.visible(x.device).clamp(min=1).to(wide).log()[..., None]  # (s, 1) or (b, s, 1)
        logs = logs if logs.ndim == 2 else logs[:, None]  # (s, 1) or (b, 1, s, 1)
        factor = self.sharpness.to(wide)[:, None, None] * logs  # (h, s, 1) or (b, h, s, 1)
        return super().attend(x, (q * factor).to(q.dtype), k, v, scope)
