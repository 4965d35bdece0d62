"""Attention whose heads are multiplied by a gate of the query's token before the output projection.

Qiu et al. 2025, https://arxiv.org/abs/2505.06708: a sigmoid gate behind the softmax lets a head say nothing, which
softmax alone cannot, and takes away the need to park weight on the first token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cubelet.common.checks import check_choice
from cubelet.models.linear import Linear

from .masking import AttentionScope
from .multi_head import MultiHeadAttention

Gate = Literal["channel", "head"]


class GatedOutputAttention(MultiHeadAttention):
    """Multi-head attention, each head's output times σ(x W_g) of the token that asks.

    Args:
        gate: "channel", a gate for each number of each head (dims × dims more weights), or "head", one for each head
            (dims × heads).
        options: see `MultiHeadAttention`.

    Gates start at ½ everywhere.

    Example:
        >>> attention = GatedOutputAttention(32, 4, gate="head")
        >>> attention(torch.randn(2, 5, 32)).shape, attention.gate.weight.shape
        (torch.Size([2, 5, 32]), torch.Size([4, 32]))
    """

    def __init__(self, dims: int, heads: int, *, gate: Gate = "channel", **options: Any) -> None:
        super().__init__(dims, heads, **options)
        check_choice("gate", gate, Gate)
        self.gate = Linear(dims, dims if gate == "channel" else heads, bias=False, scale=0.0)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.gate.reset_parameters()

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        gates = torch.sigmoid(self.gate(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, h, s, c or 1)
        return self.attend_linear(x, q, k, v, scope) * gates  # (b, h, s, c)

    def attend_linear(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        """What the gates get, as of `MultiHeadAttention`: (b, h, s, c)."""
        return super().attend(x, q, k, v, scope)
