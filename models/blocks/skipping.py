"""Learned layer skipping: per token, a block either acts or passes the token on unchanged.

In the spirit of Mixture-of-Depths (Raposo et al. 2024, https://arxiv.org/abs/2404.02258) without its top-k over the
sequence, which would look into the future. Choices:

- Keys and values are computed for skipped tokens, too, so the cache has no holes and whoever is open sees everybody.
- Without gradients (evaluation, decoding) queries, output and MLP of skipped tokens are left out. In training they are
  computed: a closed gate learns from what the block would have done.
- Decisions are made in float32 whatever autocast says: in bfloat16 three in a thousand would fall otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cubelet.models.attention.base import check_input, zero_padding
from cubelet.models.linear import Linear, wide_linear

from .gates import budget_penalty, mean_over_tokens
from .residual import ResidualBlock
from .routing import DeferredCache, take_step, update_open


class SkippingBlock(nn.Module):
    """x + g · (block(x) − x), g in {0, 1} per token: σ(x w + b) > ½, straight-through.

    Args:
        dims, heads: handed on to the block.
        block: called as block(dims, heads, **options), a class or a partial of one.
        budget: share of tokens that may use the block for free.
        budget_weight: weight of max(share − budget, 0)², returned as cost. The share in it is that of the soft gates.
        gate_bias: b at the start; positive: most tokens use the block.
        options: handed on to the block (attention, rotary, …).

    Example:
        >>> x, cost = SkippingBlock(32, 4, budget=0.25)(torch.randn(2, 5, 32))
        >>> x.shape, cost.shape
        (torch.Size([2, 5, 32]), torch.Size([]))
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        block: Callable[[int, int], nn.Module] = ResidualBlock,
        budget: float = 0.5,
        budget_weight: float = 0.1,
        gate_bias: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if not 0.0 <= budget <= 1.0 or budget_weight < 0:
            raise ValueError(f"budget {budget} must lie in 0 … 1, and budget_weight {budget_weight} be ≥ 0")
        self.dims, self.budget, self.budget_weight = dims, budget, budget_weight
        make: Callable[..., nn.Module] = block
        self.block = make(dims, heads, **options)
        self.gate = Linear(dims, 1, bias_value=gate_bias)

    def reset_parameters(self) -> None:
        """Draw the gate again."""
        self.gate.reset_parameters()

    def gates(self, x: Tensor) -> Tensor:
        """σ(x w + b), (b, s), at least float32: a token uses the block above ½. For monitoring, too."""
        return torch.sigmoid(wide_linear(self.gate, x).squeeze(-1))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `ResidualBlock.forward`; the cost holds the budget's penalty and the block's own (without a cache)."""
        check_input(x, self.dims, key_mask, documents, cache)
        x = zero_padding(x, key_mask)
        soft = self.gates(x)  # (b, s)
        if key_mask is None and documents is None:
            step = take_step(self.block, x, context, soft, cache, options)
            if step is not None:
                return step
        options |= {"key_mask": key_mask, "cache": cache} | ({} if documents is None else {"documents": documents})
        y, cost, _ = update_open(self.block, x, context, soft, options)
        if cache is not None:
            return y, cost
        penalty = self.budget_cost(soft, key_mask)
        return y, penalty if cost is None else cost + penalty

    def budget_cost(self, soft: Tensor, key_mask: Tensor | None) -> Tensor:
        """What the gates cost, 0-dim; soft (b, s)."""
        return budget_penalty(mean_over_tokens(soft, key_mask), self.budget, self.budget_weight)

    def new_cache(self, batch_size: int, max_length: int) -> Any:
        """The block's, and what waits to be written into it."""
        inner = self.block.new_cache(batch_size, max_length)  # type: ignore[operator]
        return DeferredCache(inner, batch_size, max_length)

    def penalty(self) -> Tensor:
        """The block's."""
        return self.block.penalty()  # type: ignore[operator]
