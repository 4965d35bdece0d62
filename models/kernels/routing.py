"""Rows that need not be computed: gather the open tokens, compute those, put them back.

Formula: `torch.where(is_open[..., None], compute(all rows), x)`, and for attention `sdpa_zero_empty` with a mask over
the chosen queries.

Fast path, where no gradient is wanted (a closed row's gradient needs what the row would have been): queries and the
MLP of open rows alone; keys and values of all rows, so that a cache has no holes and causality holds. Evaluation of a
SkippingBlock at dims 256, s = 1,024 over a plain block: see docs/attention.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sdpa import sdpa_zero_empty
from .switch import use_fast_path

CHUNK = 64  # queries that share a slice of keys; fewer cost more calls, more cost scores that causality hides


def may_skip_rows() -> bool:
    """Whether closed rows may be left out: eager code without gradients."""
    return use_fast_path("routing") and not torch.is_grad_enabled()


def can_read_values(tensor: Tensor) -> bool:
    """Whether reading a tensor's numbers costs nothing: eager code on the CPU."""
    return use_fast_path("read_values") and tensor.device.type == "cpu"


def open_rows(is_open: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Indices of the open rows, (b, r) in order, and which of them are, (b, r) bool; None where all are open.

    r is the largest number of open rows of the batch; entries of other batch rows are filled up with closed ones. Where
    none need filling the second is None.

    Args:
        is_open: (b, s) bool.

    Example:
        >>> rows, valid = open_rows(torch.tensor([[True, False, True], [False, False, True]]))
        >>> rows.tolist(), valid.tolist()
        ([[0, 2], [2, 0]], [[True, True], [True, False]])
    """
    batch, length = is_open.shape
    # In decoding there is a handful of rows, and Python adds faster than torch is called.
    total = sum(is_open.flatten().tolist()) if batch * length < 32 else int(is_open.sum())
    if total == batch * length:
        return None
    if total == 0:
        return torch.zeros(batch, 0, dtype=torch.long, device=is_open.device), None
    if batch == 1:
        return is_open.nonzero()[None, :, 1], None
    counts = is_open.sum(1)
    most = int(counts.max())
    rows = open_first(is_open, most)
    return rows, None if most * batch == total else torch.arange(most, device=rows.device) < counts[:, None]


def open_first(is_open: Tensor, count: int) -> Tensor:
    """Indices of `count` rows, (b, count): the open ones of (b, s) in order, then closed ones."""
    return (~is_open).long().argsort(dim=1, stable=True)[:, :count]


def _flat(rows: Tensor, length: int) -> Tensor:
    """Rows (b, r) of each batch row as rows of all: (b·r,)."""
    return (rows + torch.arange(rows.shape[0], device=rows.device)[:, None] * length).flatten()


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x (b, s, …) → (b, r, …), the rows (b, r) of each. (Whole rows: `gather` would read an index for every number.)"""
    return x.flatten(0, 1).index_select(0, _flat(rows, x.shape[1])).unflatten(0, rows.shape)


def put_rows(x: Tensor, rows: Tensor, valid: Tensor | None, y: Tensor) -> Tensor:
    """x (b, s, d) with y (b, r, d) at the valid rows; None: all are."""
    if valid is not None:
        y = torch.where(valid[..., None], y, take_rows(x, rows))
    return x.flatten(0, 1).index_copy(0, _flat(rows, x.shape[1]), y.flatten(0, 1)).view_as(x)


def _causal_penalties(keys: int, like: Tensor) -> Tensor:
    """A view (keys, keys) whose row keys − 1 − r is 0 up to key r and −inf behind it."""
    steps = torch.zeros(2 * keys - 1, dtype=like.dtype, device=like.device)
    steps[keys:] = -torch.inf
    return steps.unfold(0, keys, 1)


def attend_from_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of some rows' queries to all keys.

    Args:
        q: (b, h, r, c). k, v: (b, h or a divisor of it, s_k, c).
        rows: (b, r), which key each query is the row of.
        causal: whether keys behind a query's row are hidden.
        mask: (b or 1, 1, r or 1, s_k) bool, what may be attended besides, or None for all.

    Returns:
        (b, h, r, c).
    """
    if not causal:
        return sdpa_zero_empty(q, k, v, mask=mask, dropout=dropout)
    # A chunk of queries is shown no key behind its last; reading that one costs nothing on the CPU alone.
    chunked = q.device.type == "cpu" and use_fast_path("routing")
    grouped, keys = q.shape[1] != k.shape[1], k.shape[2]
    penalties = _causal_penalties(keys, q) if chunked and mask is None else None
    outs = []
    for own, qs in zip(rows.split(CHUNK, 1), q.split(CHUNK, 2), strict=True) if chunked else [(rows, q)]:
        last = int(own.max()) + 1 if chunked else keys
        parts = qs, k[:, :, :last], v[:, :, :last]
        if penalties is not None:  # a query sees itself: no row is empty
            added = penalties[:, :last].index_select(0, (keys - 1 - own).flatten()).view(*own.shape, last)[:, None]
            outs.append(F.scaled_dot_product_attention(*parts, attn_mask=added, dropout_p=dropout, enable_gqa=grouped))
            continue
        near = (own[..., None] >= torch.arange(last, device=q.device))[:, None]  # (b, 1, chunk, last)
        if mask is not None:
            start = len(outs) * CHUNK
            theirs = mask if mask.shape[2] == 1 else mask[:, :, start : start + own.shape[1]]
            near = near & theirs[..., :last]
        outs.append(sdpa_zero_empty(*parts, mask=near, dropout=dropout))
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]
