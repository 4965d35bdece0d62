"""What a query may see: one description of keys, padding and distances, and the attention over it.

Rules kept here, each for a reason found the hard way:

- Queries are always the last rows of the keys (all of them without a cache), so causality and windows follow from
  counting back from the newest row; explicit positions only feed rotations and distances. That stays causal when
  positions repeat or restart.
- Never a mask together with `is_causal`; never a large negative number for "masked": a row without any key would
  become a mean over padding. Rows without keys are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class View:
    """The keys of one call.

    Attributes:
        queries, keys: number of rows; where causal, query i is row `keys − queries + i` of the keys.
        causal: whether later rows are hidden.
        key_mask: (b, keys) bool, True = may be attended, or None.
        query_positions, key_positions: (n,) or (b, n), or None for counting from 0.
        context: whether the keys are another sequence's (cross-attention): then nothing is near or far.
        streams: whatever a variant stored beside keys and values, each (b, heads, keys, width).
    """

    queries: int
    keys: int
    causal: bool
    key_mask: Tensor | None = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    context: bool = False
    streams: tuple[Tensor, ...] = ()

    @property
    def plain(self) -> bool:
        """No padding and queries equal keys: what SDPA does by itself."""
        return self.key_mask is None and (not self.causal or self.queries == self.keys)

    def lags(self, device: torch.device) -> Tensor:
        """(queries, keys) int64: how many rows the key lies before the query; negative for later ones."""
        rows = torch.arange(self.queries, device=device) + (self.keys - self.queries)
        return rows[:, None] - torch.arange(self.keys, device=device)

    def distances(self, device: torch.device) -> Tensor:
        """(queries, keys) or (b, queries, keys): query position − key position."""
        if self.query_positions is None or self.key_positions is None:
            return self.lags(device)
        return self.query_positions[..., :, None] - self.key_positions[..., None, :]

    def allowed(self, device: torch.device, window: int | None = None) -> Tensor | None:
        """Boolean mask (b or 1, 1, queries, keys), or None where everything may be attended.

        `window` keeps lags 0 … window−1 where causal, |lag| ≤ window otherwise.
        """
        mask = None
        if window is not None:
            lags = self.lags(device)
            mask = (lags >= 0) & (lags < window) if self.causal else lags.abs() <= window
        elif self.causal and self.queries > 1:
            mask = self.lags(device) >= 0
        if mask is not None:
            mask = mask[None, None]
        if self.key_mask is not None:
            padding = self.key_mask[:, None, None, :]
            mask = padding if mask is None else mask & padding
        return mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    grouped: bool | None = None,
) -> Tensor:
    """Scaled dot-product attention in which a query without any key gets zeros.

    Args:
        q: (b, h, s_q, c). k, v: (b, h or a divisor of it, s_k, c).
        mask: bool, broadcastable to (b, h, s_q, s_k), True = may be attended.
        bias: float of the same shape, added to the scaled scores.
        causal: only without mask and bias, and with s_q = s_k.
        dropout: probability, on the attention weights.
        grouped: whether k has fewer heads than q, where the caller knows better than the shapes.
    """
    grouped = q.shape[1] != k.shape[1] if grouped is None else grouped
    if mask is None:
        added = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal, dropout_p=dropout, enable_gqa=grouped
        )
    # A row that may attend nothing attends everything instead and is zeroed afterwards: no NaN, forward or backward.
    some = mask.any(-1, keepdim=True)
    usable = mask | ~some
    if bias is not None:
        usable = bias.masked_fill(~usable, -torch.inf).to(q.dtype)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=usable, dropout_p=dropout, enable_gqa=grouped)
    return mixed.masked_fill(~some, 0.0)


def see(q: Tensor, k: Tensor, v: Tensor, view: View, *, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """`attend` to what `view` allows: (b, h, queries, c)."""
    if bias is None and view.plain:
        return attend(q, k, v, causal=view.causal, dropout=dropout)
    return attend(q, k, v, mask=view.allowed(q.device), bias=bias, dropout=dropout)
