"""Attention within a window, linear in the sequence: scaled dot-product attention over chunks with look-back.

The sequence is cut into chunks of queries; each sees one overlapping slice of the keys, so the scores are
(chunks, chunk, chunk + window) instead of (s, s). Chunks are folded into the batch axis. Choices:

- Keys of the whole batch are laid out as one long sequence and sliced by `unfold`, a view: no copy of a key per chunk
  that sees it. Slices that reach into the neighbour row of the batch, or before its start, are masked.
- A chunk is a quarter of the window and at least 64 queries: measured on a CPU, less wastes launches, more wastes
  scores outside the band.
- Without a bias this is torch's fused kernel. A bias that learns (per head and distance) would send that to its slow
  path, so it is written out: the scores are added to once, in place.
- Sequences no longer than the window go to the plain kernel, in eager mode. A compiled graph always takes the chunks,
  since a branch on the length would cost it one graph more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .view import View, attend, see


def check_window(window: int, name: str = "window") -> int:
    """The window as an int; ValueError below 1."""
    if isinstance(window, bool) or int(window) != window or window < 1:
        raise ValueError(f"{name} {window} must be a whole number ≥ 1: it counts the query itself")
    return int(window)


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
    """rows (b, chunks·chunk, …) → a view (b·chunks, …, back + chunk + ahead) of overlapping slices."""
    flat = rows.flatten(0, 1)
    padding = [0, 0] * (flat.ndim - 1) + [back, ahead]
    padded, size = F.pad(flat, padding), back + chunk + ahead
    if torch.compiler.is_compiling() or not padded.requires_grad:
        return padded.unfold(0, size, chunk)
    return _Slices.apply(padded, size, chunk)  # type: ignore[no-any-return]


def _chunked_mask(
    length: int,
    fill: int,
    batch: int,
    window: int,
    causal: bool,
    chunk: int,
    key_mask: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lags (chunk, slice), who is in the band (chunk, slice), which keys of a slice exist (b·chunks, slice)."""
    back, ahead = (window - 1, 0) if causal else (window, window)
    chunks = (length + fill) // chunk
    reach = torch.arange(back + chunk + ahead, device=device) - back
    lags = torch.arange(chunk, device=device)[:, None] - reach
    band = (lags >= 0) & (lags < window) if causal else lags.abs() <= window
    keys = torch.arange(batch * chunks, device=device)[:, None] % chunks * chunk + reach
    exists = keys >= 0 if causal else (keys >= 0) & (keys < length)
    if key_mask is not None:
        padded = F.pad(key_mask, (0, fill), value=False)
        exists = exists & _slices(padded, back, ahead, chunk)
    return lags, band, exists


def windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    causal: bool = True,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Attend to the `window` keys up to and including the query's own, or, not causal, to all within ± window.

    Args:
        q: (b, h, s, c). k, v: (b, h or a divisor of it, s, c), row i the key of query i.
        window: at least 1.
        key_mask: (b, s) bool, True = may be attended.
        bias: (h, window), added to the scores by distance; causal only. −inf removes a distance.
        dropout: probability, on the attention weights.
        chunk: queries that share a slice of keys; default max(64, window / 4).

    Returns:
        (b, h, s, c); queries without any key get zeros.
    """
    batch, _, length, _ = q.shape
    if not torch.compiler.is_compiling() and length <= window:  # in this order: asking first would split graphs
        return _see_band(q, k, v, View(length, length, causal, key_mask), window, bias, dropout)
    chunk = max(64, window // 4) if chunk is None else chunk
    grouped = q.shape[1] != k.shape[1]  # asked here: under torch.compile the slices' shapes are symbols
    back, ahead = (window - 1, 0) if causal else (window, window)
    fill: int = (-length) % chunk
    if torch.compiler.is_compiling():  # at least two chunks: a graph takes one for a special case
        fill = torch.sym_max(fill, 2 * chunk - length)  # type: ignore[assignment]
    lags, band, exists = _chunked_mask(length, fill, batch, window, causal, chunk, key_mask, q.device)
    q, k, v = (F.pad(t.transpose(1, 2), (0, 0, 0, 0, 0, fill)) for t in (q, k, v))
    q = q.unflatten(1, (-1, chunk)).transpose(2, 3).flatten(0, 1)
    k, v = (_slices(t, back, ahead, chunk).transpose(-1, -2) for t in (k, v))
    if bias is None:
        mixed = _fused(q, k, v, band, exists, lags, key_mask is not None, grouped, dropout)
    else:
        mixed = _biased(q, k, v, band, exists, bias, lags, key_mask is not None, dropout)
    mixed = mixed.transpose(1, 2).reshape(batch, -1, *mixed.shape[1::2])
    return mixed[:, :length].transpose(1, 2)


def see_window(
    q: Tensor, k: Tensor, v: Tensor, view: View, window: int, *, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """`windowed` for whatever `view` describes, a few queries behind many cached keys included."""
    if view.queries == view.keys:
        return windowed(q, k, v, window, causal=view.causal, key_mask=view.key_mask, bias=bias, dropout=dropout)
    return _see_band(q, k, v, view, window, bias, dropout)


def _see_band(q: Tensor, k: Tensor, v: Tensor, view: View, window: int, bias: Tensor | None, dropout: float) -> Tensor:
    """One (queries, keys) block of scores, with a mask only where one is needed."""
    inside = view.keys <= window  # then nobody is too far, and the band is plain causality
    if bias is None:
        if inside:
            return see(q, k, v, view, dropout=dropout)
        return attend(q, k, v, mask=view.allowed(q.device, window), dropout=dropout)
    added = _by_lag(bias, view.lags(q.device))
    assert added is not None
    mask = view.allowed(q.device, window)
    near = (added > -torch.inf) if mask is None else mask & (added > -torch.inf)
    return attend(q, k, v, mask=near, bias=added, dropout=dropout)


def _by_lag(bias: Tensor | None, lags: Tensor) -> Tensor | None:
    """bias (h, window) → (1, h, …) by lag; lags outside 0 … window−1 get the nearest entry and must be masked."""
    return None if bias is None else bias[:, lags.clamp(0, bias.shape[1] - 1)][None]


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    band: Tensor,
    exists: Tensor,
    lags: Tensor,
    padded: bool,
    grouped: bool,
    dropout: float,
) -> Tensor:
    mask = band & exists[:, None, None, :]
    if padded:
        return attend(q, k, v, mask=mask, dropout=dropout, grouped=grouped)
    # Queries behind the end see at least their own (zero) key, so no row is empty.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask | (lags == 0), dropout_p=dropout, enable_gqa=grouped)


def _biased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    band: Tensor,
    exists: Tensor,
    bias: Tensor,
    lags: Tensor,
    padded: bool,
    dropout: float,
) -> Tensor:
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    by_lag = _by_lag(bias, lags)
    assert by_lag is not None
    shared = by_lag.masked_fill(~band, -torch.inf).to(q.dtype)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores + shared
    gone = ~exists[:, None, None, :]
    if not padded:
        scores = scores.masked_fill(gone & (lags != 0), -torch.inf)
        weights = scores.softmax(-1)
    else:
        scores = scores.masked_fill(gone, -torch.inf)
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights.to(v.dtype) @ v
