"""Attention within a window, linear in the sequence: scaled dot-product attention over chunks with look-back.

Formula: `sdpa_zero_empty(q, k, v, mask=in_band(lags, window, causal), bias=bias_by_lag(bias, lags))`.

Fast path: the sequence is cut into chunks of queries; each sees one overlapping slice of the keys, so the scores are
(chunks, chunk, chunk + window) instead of (s, s). Chunks are folded into the batch axis. At s = 4,096 and a window of
256, forward and backward take 0.20 of causal SDPA, the formula 1.95 (docs/attention.md). Choices:

- Keys of the whole batch are laid out as one long sequence and sliced by `unfold`, a view: no copy of a key per chunk
  that sees it. Slices that reach into the neighbour row of the batch, or before its start, are masked.
- A chunk is a quarter of the window and at least 64 queries: measured on a CPU, less wastes launches, more wastes
  scores outside the band.
- Without a bias, or without gradients, this is torch's fused kernel. A bias that learns (per head and distance) would
  send that to its slow path, so it is written out: the scores are added to once, in place.
- Sequences no longer than the window take the formula, in eager mode. A compiled graph always takes the chunks, since
  a branch on the length would cost it one graph more; an exported one the formula, for any length.

Shapes: b batch, h heads, s tokens, c head width, n chunks of t tokens, u = back + t + ahead keys of a slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sdpa import sdpa_zero_empty
from .switch import use_fast_path


def in_band(lags: Tensor, window: int, causal: bool) -> Tensor:
    """Whether a key `lags` rows before the query is in its window: 0 ≤ lag < window, or |lag| ≤ window."""
    return (lags >= 0) & (lags < window) if causal else lags.abs() <= window


def bias_by_lag(bias: Tensor, lags: Tensor) -> Tensor:
    """bias (h, n) by distance → (1, h, …) by lag; distances outside 0 … n−1 get the nearest entry."""
    return bias[:, lags.abs().clamp(max=bias.shape[1] - 1)][None]


class _Slices(torch.autograd.Function):
    """`unfold` over the first axis; its gradient adds whole chunks (torch's own goes element by element)."""

    @staticmethod
    def forward(ctx, rows: Tensor, size: int, chunk: int) -> Tensor:
        ctx.size, ctx.chunk, ctx.rows = size, chunk, rows.shape[0]
        return rows.unfold(0, size, chunk)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].movedim(-1, 1)  # (slices, size, …)
        count, chunk = grad.shape[0], ctx.chunk
        parts = range(0, ctx.size, chunk)
        total = grad.new_zeros(count + len(parts) - 1, chunk, *grad.shape[2:])
        for index, start in enumerate(parts):
            part = grad[:, start : start + chunk]
            total[index : index + count, : part.shape[1]] += part
        return total.flatten(0, 1)[: ctx.rows], None, None


def _slices(rows: Tensor, back: int, ahead: int, chunk: int) -> Tensor:
    """rows (b, n·t, …) → a view (b·n, …, u) of overlapping slices."""
    flat = rows.flatten(0, 1)  # (b·n·t, …)
    padded = F.pad(flat, [0, 0] * (flat.ndim - 1) + [back, ahead])
    size = back + chunk + ahead
    if not padded.requires_grad or not use_fast_path("sliding_window_gradient"):
        return padded.unfold(0, size, chunk)
    return _Slices.apply(padded, size, chunk)


def _whole(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    causal: bool,
    key_mask: Tensor | None,
    documents: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """The formula: one (s, s) block of scores, with a mask only where one is needed."""
    length = q.shape[2]
    plain = key_mask is None and documents is None and bias is None and not torch.compiler.is_exporting()
    if plain and length <= window:  # nobody is too far, and the band is plain causality
        return sdpa_zero_empty(q, k, v, causal=causal, dropout=dropout)
    rows = torch.arange(length, device=q.device)
    lags = rows[:, None] - rows  # (s, s)
    mask = in_band(lags, window, causal)[None, None]  # (1, 1, s, s)
    if key_mask is not None:
        mask = mask & key_mask[:, None, None, :]
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    if bias is None:
        return sdpa_zero_empty(q, k, v, mask=mask, dropout=dropout)
    added = bias_by_lag(bias, lags)  # (1, h, s, s)
    return sdpa_zero_empty(q, k, v, mask=mask & (added > -torch.inf), bias=added, dropout=dropout)


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    causal: bool = True,
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Attend to the `window` keys up to and including the query's own, or, not causal, to all within ± window.

    Args:
        q: (b, h, s, c). k, v: (b, h or a divisor of it, s, c), row i the key of query i.
        window: at least 1.
        key_mask: (b, s) bool, True = may be attended.
        documents: (b, s) integers; a query sees keys of its own number only.
        bias: (h, distances), added to the scores by distance; farther ones share the last. −inf removes a distance.
        dropout: probability, on the attention weights.
        chunk: queries that share a slice of keys; default max(64, window / 4).

    Returns:
        (b, h, s, c); queries without any key get zeros.

    Example:
        >>> q = torch.zeros(1, 1, 4, 2)
        >>> v = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 2)
        >>> sliding_window_attention(q, q, v, window=2)[0, 0, :, 0].tolist()
        [0.0, 0.5, 1.5, 2.5]
    """
    batch, _, length, _ = q.shape
    if torch.compiler.is_exporting():  # how many chunks there are would restrict the lengths of an exported graph
        return _whole(q, k, v, window, causal, key_mask, documents, bias, dropout)
    # In this order: asking for the length first would split graphs.
    if not torch.compiler.is_compiling() and (length <= window or not use_fast_path("sliding_window")):
        return _whole(q, k, v, window, causal, key_mask, documents, bias, dropout)
    chunk = max(64, window // 4) if chunk is None else chunk
    grouped = q.shape[1] != k.shape[1]  # asked here: under torch.compile the slices' shapes are symbols
    back, ahead = (window - 1, 0) if causal else (window, window)
    fill: int = (-length) % chunk
    if torch.compiler.is_compiling():  # at least two chunks: a graph takes one for a special case
        fill = torch.sym_max(fill, 2 * chunk - length)  # type: ignore[assignment]  # a SymInt
    chunks = (length + fill) // chunk
    reach = torch.arange(back + chunk + ahead, device=q.device) - back  # (u,)
    lags = torch.arange(chunk, device=q.device)[:, None] - reach  # (t, u)
    band = in_band(lags, window, causal)
    keys = torch.arange(batch * chunks, device=q.device)[:, None] % chunks * chunk + reach  # (b·n, u)
    exists = keys >= 0 if causal else (keys >= 0) & (keys < length)
    if key_mask is not None:
        exists = exists & _slices(F.pad(key_mask, (0, fill), value=False), back, ahead, chunk)
    mask = exists[:, None, None, :]  # (b·n, 1, 1, u)
    if documents is not None:
        padded = F.pad(documents, (0, fill))
        theirs = _slices(padded, back, ahead, chunk)  # (b·n, u)
        mask = mask & (padded.view(-1, 1, chunk, 1) == theirs[:, None, None, :])  # (b·n, 1, t, u)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (b, s, h, c)
    if torch.compiler.is_compiling() or fill:  # in eager mode padding by nothing is a copy
        q, k, v = (F.pad(t, (0, 0, 0, 0, 0, fill)) for t in (q, k, v))  # (b, n·t, h, c)
    q = q.unflatten(1, (-1, chunk)).transpose(2, 3).flatten(0, 1)  # (b·n, h, t, c)
    k, v = (_slices(t, back, ahead, chunk).transpose(-1, -2) for t in (k, v))  # (b·n, h, u, c)
    if key_mask is None:  # queries behind the end see at least their own (zero) key, so no row is empty
        mask = mask | (lags == 0)
    if bias is not None and torch.is_grad_enabled():
        heads = _biased(q, k, v, band, mask, bias_by_lag(bias, lags), key_mask is not None, dropout)
    elif bias is not None:
        added, near = bias_by_lag(bias, lags), mask & band  # (1, h, t, u), (b·n, 1, t, u)
        if key_mask is None:
            if causal and documents is None:  # all chunks share a band: one pass adds who exists to it
                absent = torch.zeros_like(exists, dtype=q.dtype).masked_fill(~exists, -torch.inf)
                added = added.masked_fill(~band, -torch.inf).to(q.dtype) + absent[:, None, None, :]
            else:
                added = added.masked_fill(~near, -torch.inf).to(q.dtype)
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout, enable_gqa=grouped)
        else:
            near = near & (added > -torch.inf)
            heads = sdpa_zero_empty(q, k, v, mask=near, bias=added, dropout=dropout, grouped=grouped)
    elif key_mask is None:
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask & band, dropout_p=dropout, enable_gqa=grouped)
    else:
        heads = sdpa_zero_empty(q, k, v, mask=mask & band, dropout=dropout, grouped=grouped)
    heads = heads.transpose(1, 2).reshape(batch, -1, *heads.shape[1::2])  # (b, n·t, h, c)
    return heads[:, :length].transpose(1, 2)  # (b, h, s, c)


def _biased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    band: Tensor,
    mask: Tensor,
    added: Tensor,
    padded: bool,
    dropout: float,
) -> Tensor:
    """softmax(q kᵀ / √c + added) v written out, for q (b·n, h, t, c) and added (1, h, t, u)."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))  # (b·n, h, u, c)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (b·n, h, t, u)
    scores = scores + added.masked_fill(~band, -torch.inf).to(q.dtype)
    scores = scores.masked_fill(~mask, -torch.inf)
    if padded:
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    else:
        weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights.to(v.dtype) @ v
