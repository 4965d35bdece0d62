"""Mixture of depths: a block for a fixed share of the tokens, the rest passes by; keys of its own tokens alone.

Raposo et al. 2024, https://arxiv.org/abs/2404.02258, take the k tokens of a sequence whose router scores are highest,
which looks into the future. Here a token is taken if its gate is open and there is room:

    c_t = min(c_{t−1} + [g_t > ½], ⌊capacity · (t + 1)⌋), the tokens taken up to t,

the rule of a token bucket: causal, so decoding equals the full forward, and never more than ⌊capacity · s⌋ tokens, a
number known beforehand, so shapes are static in training, too. Choices:

- c_t = G_t + min(c before, min_{j ≤ t} (⌊capacity · (j + 1)⌋ − G_j)), G the running count of open gates: a running
  minimum, no loop. Every document has a bucket of its own.
- Taken tokens are gathered into ⌊capacity · s⌋ slots and run through the block as a shorter row, with their positions;
  empty slots are masked. So attention costs capacity² of a whole row's, all else capacity.
- The gate learns from taken tokens: what is not taken is not computed, so nothing would ever open a closed gate. So the
  cost pulls the share of open gates to the capacity from both sides; with the budget of `SkippingBlock`, which only
  closes, the upper two of four layers kept 4 and 0 % after 300 steps, and the model learnt bigrams.
- Every other layer is the place for it (`block: [ResidualBlock, MixtureOfDepthsBlock]`), as Raposo et al. found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cubelet.models.attention import Attention, MultiHeadAttention
from cubelet.models.attention.base import check_input, zero_padding
from cubelet.models.attention.masking import count_in_document, document_starts
from cubelet.models.cache import CacheGroup
from cubelet.models.kernels.routing import may_skip_rows, open_first, open_rows, put_rows, take_rows

from .gates import gated_update, hard_gate, mean_over_tokens
from .residual import ResidualBlock
from .skipping import SkippingBlock


def take_within_capacity(
    is_open: Tensor,
    capacity: float,
    real: Tensor,
    documents: Tensor | None = None,
    read: Tensor | int = 0,
    taken: Tensor | int = 0,
) -> Tensor:
    """Which tokens are taken: open ones, as long as there is room.

    Args:
        is_open: (b, s) bool.
        capacity: share of tokens that may be taken.
        real: (b, s) bool, False on padding, which gives no room.
        documents: (b, s) integers, or None for one document.
        read, taken: (b, 1 or s) int64, real tokens of the token's document before these, and how many were taken.

    Returns:
        (b, s) bool.

    Example:
        >>> is_open = torch.tensor([[True, True, True, False, False, True]])
        >>> take_within_capacity(is_open, 0.5, torch.ones_like(is_open)).int().tolist()
        [[0, 1, 0, 0, 0, 1]]
    """
    counted = count_in_document(real, documents) + read  # (b, s)
    opened = count_in_document(is_open & real, documents)
    room = torch.floor(counted * capacity + 1e-6).long() - opened
    if documents is not None:  # later documents lie below all of the earlier ones: the minimum starts anew
        lower = document_starts(documents).cumsum(1) * (2 * documents.shape[1] + 2)
        least = (room - lower).cummin(1).values + lower
    else:
        least = room.cummin(1).values
    past = torch.zeros_like(least) + taken  # (b, s)
    total = opened + torch.minimum(least, past)  # c_t
    before = torch.cat([past[:, :1], total[:, :-1]], dim=1)
    if documents is not None:
        before = torch.where(document_starts(documents), past, before)
    return total > before


class _Count:
    """Tokens of the last document read and taken so far, (b, 1) each."""

    def __init__(self, batch_size: int, max_length: int, device: Any) -> None:
        self.read = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self.taken = torch.zeros_like(self.read)
        self.document: Tensor | None = None  # (b, 1)
        self.max_length, self.length = max_length, 0

    def past(self, real: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """What `take_within_capacity` has to know of the tokens before; ValueError where these do not fit."""
        batch, new = real.shape
        if batch != self.read.shape[0] or self.length + new > self.max_length:
            raise ValueError(
                f"this cache is for a batch of {self.read.shape[0]} and max_length {self.max_length}; {self.length} "
                f"tokens are held, and {new} more came for a batch of {batch}"
            )
        if documents is None:
            return {"read": self.read, "taken": self.taken}
        goes_on = documents == (documents[:, :1] if self.document is None else self.document)
        return {"read": self.read * goes_on, "taken": self.taken * goes_on}

    def add(self, real: Tensor, taken: Tensor, documents: Tensor | None, past: dict[str, Tensor]) -> None:
        """Count on by tokens, (b, s) bool."""
        self.read = count_in_document(real, documents)[:, -1:] + past["read"][:, -1:]
        self.taken = count_in_document(taken, documents)[:, -1:] + past["taken"][:, -1:]
        self.document = None if documents is None else documents[:, -1:]
        self.length += taken.shape[1]

    def reorder(self, indices: Tensor) -> None:
        """Reorder along the batch."""
        self.read, self.taken = self.read[indices], self.taken[indices]
        self.document = None if self.document is None else self.document[indices]

    def crop(self, length: int) -> None:
        """ValueError: which tokens were taken is not kept."""
        if length != self.length:
            raise ValueError(f"crop to {length} of {self.length} tokens: make a new cache and read the tokens again")


class MixtureOfDepthsBlock(SkippingBlock):
    """x + taken · (block(x) − x), taken by a gate within a capacity; attention is among taken tokens only.

    Args:
        capacity: share of tokens that may be taken.
        attention: of the inner `ResidualBlock`; one that depends on which row is next to which (a window, a
            convolution) has no meaning where the cache has gaps, and is refused.
        budget: share of open gates that is asked for; the capacity by default.
        budget_weight: weight of (share − budget)², returned as cost; the share is that of open gates, straight-through.
        gate_bias, options: see `SkippingBlock`.

    Example:
        >>> block = MixtureOfDepthsBlock(32, 4, capacity=0.25)
        >>> x, cost = block(torch.randn(2, 12, 32))
        >>> x.shape
        torch.Size([2, 12, 32])
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        capacity: float = 0.5,
        budget: float | None = None,
        budget_weight: float = 1.0,
        attention: Callable[[int, int], Attention] = MultiHeadAttention,
        **options: Any,
    ) -> None:
        if not 0.0 < capacity <= 1.0:
            raise ValueError(f"capacity {capacity} must be above 0 and at most 1")
        budget = capacity if budget is None else budget
        super().__init__(dims, heads, budget=budget, budget_weight=budget_weight, attention=attention, **options)
        inner = getattr(self.block, "attention", None)
        if not (isinstance(self.block, ResidualBlock) and isinstance(inner, Attention) and inner.accepts_rows):
            raise ValueError(
                f"{type(inner).__name__} depends on which token is next to which, and the tokens taken have gaps "
                "between them; use MultiHeadAttention or ContentGatedAttention in a ResidualBlock"
            )
        self.capacity, self.causal = capacity, inner.causal
        if not self.causal:
            raise ValueError("a capacity counts the tokens so far: it needs causal=True")

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        context_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `SkippingBlock.forward`."""
        check_input(x, self.dims, key_mask, documents, cache)
        x = zero_padding(x, key_mask)
        soft = self.gates(x)  # (b, s)
        real = torch.ones_like(soft, dtype=torch.bool)
        if key_mask is not None:
            real = key_mask[:, key_mask.shape[1] - x.shape[1] :]
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + x.shape[1], device=x.device)
        positions = positions.expand(x.shape[0], -1) if positions.ndim == 1 else positions
        count = None if cache is None else cache.parts[1]
        past = {} if count is None else count.past(real, documents)
        taken = take_within_capacity(soft > 0.5, self.capacity, real, documents, **past)  # (b, s)
        if count is not None:
            count.add(real, taken, documents, past)
        rows, valid = self._slots(taken, cache is not None)  # (b, slots) each
        if not rows.shape[1]:
            return x, None if cache is not None else self.budget_cost(soft, key_mask)
        options |= {"key_mask": valid, "positions": take_rows(positions, rows)}
        if context_mask is not None:
            options["context_mask"] = context_mask
        if documents is not None:
            options["documents"] = take_rows(documents, rows)
        inner = take_rows(x, rows)  # (b, slots, d)
        y, cost = self.block(inner, context, cache=None if cache is None else cache.parts[0], **options)
        if not may_skip_rows():
            gate = take_rows(soft, rows) if valid is None else take_rows(soft, rows) * valid  # (b, slots)
            y = gated_update(inner, y, hard_gate(gate)[..., None].to(y.dtype), gate[..., None].to(y.dtype))
        y = put_rows(x, rows, valid, y)
        if cache is not None:
            return y, cost
        penalty = self.budget_cost(soft, key_mask)
        return y, penalty if cost is None else cost + penalty

    def budget_cost(self, soft: Tensor, key_mask: Tensor | None) -> Tensor:
        """What gates cost that are open more or less often than the budget, 0-dim; soft (b, s)."""
        return self.budget_weight * (mean_over_tokens(hard_gate(soft), key_mask) - self.budget).square()

    def _slots(self, taken: Tensor, cached: bool) -> tuple[Tensor, Tensor | None]:
        """Rows to compute, the taken ones of (b, s) first and in order, and which are taken, or None where all are.

        As many as were taken where that may be read, otherwise as many as the capacity allows: a fixed number; with a
        cache, in a compiled graph, all, since earlier tokens may have left room.
        """
        if may_skip_rows():
            chosen = open_rows(taken)
            return (open_first(taken, taken.shape[1]), None) if chosen is None else chosen
        if cached:
            rows = torch.arange(taken.shape[1], device=taken.device).expand(taken.shape[0], -1)
            return rows, taken
        rows = open_first(taken, max(1, math.floor(self.capacity * taken.shape[1] + 1e-6)))
        return rows, take_rows(taken, rows)

    def new_cache(self, batch_size: int, max_length: int) -> CacheGroup:
        """The inner block's cache, of taken tokens alone, and the counts."""
        inner = self.block.new_cache(batch_size, max_length)  # type: ignore[operator]
        return _Group(inner, _Count(batch_size, max_length, self.gate.weight.device))


class _Group(CacheGroup):
    @property
    def length(self) -> int:
        """Tokens read so far, taken or not."""
        return self.parts[1].length
