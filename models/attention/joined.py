"""Attentions made of several branches that read the same input, each with its own projections, rotary and cache."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..cache import CacheGroup
from .base import Attention

Join = Literal["sum", "concat"]


def own_rotary(rotary: nn.Module | None) -> nn.Module | None:
    """A copy of a rotary, so that each branch learns its own and no tensor has two names in a state_dict."""
    return copy.deepcopy(rotary)


class JoinedAttention(Attention):
    """Runs `branches()` and joins what they return.

    Args:
        dims, heads, causal, dropout: see `Attention`.
        join: "sum" of the outputs, or "concat" of them followed by a linear map 2·dims → dims. Both can express the
            same functions (each branch ends in a linear map); they differ in how they are optimised.
    """

    accepts_context = False

    def __init__(self, dims: int, heads: int, *, causal: bool, dropout: float, join: Join) -> None:
        super().__init__(dims, heads, causal=causal, dropout=dropout)
        if join not in get_args(Join):
            raise ValueError(f"join {join!r} is unknown; choose one of {', '.join(get_args(Join))}")
        self.join_layer = nn.Linear(2 * dims, dims, bias=False) if join == "concat" else None
        if self.join_layer is not None:
            nn.init.normal_(self.join_layer.weight, std=(2 * dims) ** -0.5)

    def branches(self) -> list[Attention]:
        """The branches, in the order of their caches."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        self._check_inputs(x, context, key_mask, positions, cache)
        caches = [None] * len(self.branches()) if cache is None else cache.parts
        outs = [
            branch(x, key_mask=key_mask, positions=positions, cache=part)
            for branch, part in zip(self.branches(), caches, strict=True)
        ]
        return self.join(outs)

    def join(self, outs: list[Tensor]) -> Tensor:
        """Join the branches' outputs, each (b, s, dims)."""
        if self.join_layer is not None:
            return self.join_layer(torch.cat(outs, dim=-1))
        total = outs[0]
        for out in outs[1:]:
            total = total + out
        return total

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CacheGroup:
        return CacheGroup(
            *(branch.new_cache(batch_size, max_length, device=device, dtype=dtype) for branch in self.branches())
        )

    def penalty(self) -> Tensor:
        first, *rest = [branch.penalty() for branch in self.branches()]
        for more in rest:
            first = first + more
        return first

    def zero_output(self) -> None:
        if self.join_layer is not None:
            nn.init.zeros_(self.join_layer.weight)
        else:
            for branch in self.branches():
                branch.zero_output()
