"""Attentions made of several branches that read the same input, each with its own projections, rotary and cache."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_choice
from cubelet.models.cache import CacheGroup
from cubelet.models.linear import Linear
from cubelet.models.rotary import Rotary

from .base import Attention, check_input

Join = Literal["sum", "concat"]


def copy_rotary(rotary: Rotary | None) -> Rotary | None:
    """A copy of a rotary, so that each branch learns its own and no tensor has two names in a state_dict."""
    return copy.deepcopy(rotary)


class ParallelAttention(Attention):
    """Runs `branches()` and joins what they return.

    Args:
        join: "sum" of the outputs, or "concat" of them followed by a linear map 2·dims → dims. Both can express the
            same functions (each branch ends in a linear map); they differ in how they are optimised.
        options: see `Attention`.

    Example:
        >>> from cubelet.models.attention import MultiHeadAttention
        >>> class Twice(ParallelAttention):
        ...     def __init__(self, dims, heads, **options):
        ...         super().__init__(dims, heads, join="sum", **options)
        ...         self.one, self.two = MultiHeadAttention(dims, heads), MultiHeadAttention(dims, heads)
        ...
        ...     def branches(self):
        ...         return self.one, self.two
        >>> Twice(8, 2)(torch.randn(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    accepts_context = False

    def __init__(self, dims: int, heads: int, *, join: Join, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        check_choice("join", join, Join)
        self.out = Linear(2 * dims, dims, bias=False) if join == "concat" else None
        self.register_load_state_dict_pre_hook(_rename_join_layer)

    def branches(self) -> list[Attention]:
        """The branches, in the order of their caches."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the branches and the joining map again."""
        for module in (*self.branches(), self.out):
            if module is not None:
                module.reset_parameters()  # type: ignore[operator]  # every branch has one

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        check_input(x, self.dims, key_mask, documents, cache)
        if context is not None:
            self._check_context(x, context, key_mask, documents)
        caches = [None] * len(self.branches()) if cache is None else cache.parts
        options = {"key_mask": key_mask, "positions": positions, "documents": documents}
        return self.join(
            [branch(x, cache=part, **options) for branch, part in zip(self.branches(), caches, strict=True)]
        )

    def join(self, outs: list[Tensor]) -> Tensor:
        """Join the branches' outputs, each (b, s, dims)."""
        if self.out is not None:
            return self.out(torch.cat(outs, dim=-1))
        total = outs[0]
        for out in outs[1:]:
            total = total + out
        return total

    def new_cache(self, batch_size: int, max_length: int) -> CacheGroup:
        return CacheGroup(*(branch.new_cache(batch_size, max_length) for branch in self.branches()))

    def penalty(self) -> Tensor:
        first, *rest = [branch.penalty() for branch in self.branches()]
        for more in rest:
            first = first + more
        return first

    def zero_output(self) -> None:
        if self.out is not None:
            super().zero_output()
            return
        for branch in self.branches():
            branch.zero_output()


def _rename_join_layer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints of 0.1.0 name the joining map `join_layer`."""
    old = f"{prefix}join_layer.weight"
    if old in state_dict:
        state_dict[f"{prefix}out.weight"] = state_dict.pop(old)
