"""Who may see whom: one description of keys, padding, documents and distances, and the attention over it.

Rules kept here, each for a reason found the hard way:

- Queries are always the last rows of the keys (all of them without a cache), so causality and windows follow from
  counting back from the newest row; explicit positions only feed rotations and distances. That stays causal when
  positions repeat or restart.
- Never a mask together with `is_causal`; rows without keys are zeros (`sdpa_zero_empty`).
- Documents are compared by their numbers: a query sees keys of its own number only. What packs several into a row gives
  each a number of its own there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cubelet.models.kernels.packed import packed_attention
from cubelet.models.kernels.routing import attend_from_rows
from cubelet.models.kernels.sdpa import sdpa_zero_empty
from cubelet.models.kernels.sliding_window import bias_by_lag, in_band, sliding_window_attention


@dataclass
class AttentionScope:
    """The keys of one call.

    Attributes:
        queries, keys: number of rows; where causal, query i is row `keys − queries + i` of the keys.
        causal: whether later rows are hidden.
        key_mask: (b, keys) bool, True = may be attended, or None.
        query_positions, key_positions: (n,) or (b, n), or None for counting from 0.
        query_documents, key_documents: (b, n) integers, or None for one document.
        rows: (b, queries), where the queries are only some of the new rows: which of the keys each is; None: the last.
        taken: (b, new rows) bool, which keys are not held from before (`ContentGatedAttention`), or None.
        bias: added to every score, broadcastable to (b, heads, queries, keys), or None.
        is_context: whether the keys are another sequence's (cross-attention): then nothing is near or far.
        streams: whatever a variant stored beside keys and values, each (b, heads, keys, width).

    Example:
        >>> AttentionScope(queries=2, keys=3, causal=True).lags(torch.device("cpu"))  # how far back each key lies
        tensor([[ 1,  0, -1],
                [ 2,  1,  0]])
    """

    queries: int
    keys: int
    causal: bool
    key_mask: Tensor | None = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    query_documents: Tensor | None = None
    key_documents: Tensor | None = None
    rows: Tensor | None = None
    bias: Tensor | None = None
    taken: Tensor | None = None
    is_context: bool = False
    streams: tuple[Tensor, ...] = ()

    @property
    def is_plain(self) -> bool:
        """No padding, one document, and queries equal keys: what SDPA does by itself."""
        whole = self.rows is None and (not self.causal or self.queries == self.keys)
        return whole and self.key_mask is None and self.key_documents is None

    @property
    def counts_rows(self) -> bool:
        """Whether distances are those of rows, no positions having been given."""
        return self.query_positions is None or self.key_positions is None

    def lags(self, device: torch.device) -> Tensor:
        """Rows from key to query, negative for later keys: (queries, keys) int64, or (b, queries, keys) with `rows`."""
        rows = self.rows
        if rows is None:
            rows = torch.arange(self.queries, device=device) + (self.keys - self.queries)
        return rows[..., None] - torch.arange(self.keys, device=device)

    def distances(self, device: torch.device) -> Tensor:
        """(queries, keys) or (b, queries, keys): query position − key position."""
        if self.query_positions is None or self.key_positions is None:  # `counts_rows`
            return self.lags(device)
        return self.query_positions[..., :, None] - self.key_positions[..., None, :]

    def allowed(self, device: torch.device, window: int | None = None) -> Tensor | None:
        """Boolean mask (b or 1, 1, queries, keys), or None where everything may be attended.

        `window` keeps lags 0 … window−1 where causal, |lag| ≤ window otherwise.
        """
        mask = None
        if window is not None:
            mask = in_band(self.lags(device), window, self.causal)
        elif self.causal and (self.queries > 1 or self.rows is not None):
            mask = self.lags(device) >= 0
        if mask is not None:
            mask = mask.unsqueeze(-3) if mask.ndim == 3 else mask[None, None]  # (b or 1, 1, queries, keys)
        more = self.beside_order()
        if more is None:
            return mask
        return more if mask is None else mask & more

    def beside_order(self) -> Tensor | None:
        """What of `allowed` is not order or window: padding and documents, (b, 1, queries or 1, keys), or None."""
        padding = None if self.key_mask is None else self.key_mask[:, None, None, :]
        if self.query_documents is None or self.key_documents is None:
            return padding
        same = self.query_documents[:, None, :, None] == self.key_documents[:, None, None, :]
        return same if padding is None else same & padding

    def visible(self, device: torch.device) -> Tensor:
        """How many keys each query may see: (queries,) or (b, queries) int64."""
        rows = self.rows
        if rows is None:
            rows = torch.arange(self.queries, device=device) + (self.keys - self.queries)
        real, theirs = self.key_mask, self.key_documents
        if real is None:
            if theirs is None:
                return rows + 1 if self.causal else torch.full_like(rows, self.keys)
            real = torch.ones_like(theirs, dtype=torch.bool)
        if self.causal:
            counts = count_in_document(real, theirs)  # (b, keys)
            return counts.gather(1, rows.expand(counts.shape[0], -1))
        if theirs is None or self.query_documents is None:
            return real.sum(1, keepdim=True).expand(-1, self.queries)
        same = self.query_documents[:, :, None] == theirs[:, None]  # (b, queries, keys)
        return (same & real[:, None]).sum(2)

    def ask_from(self, rows: Tensor) -> None:
        """Let only these of the new rows ask, rows (b, r)."""
        for name in ("query_positions", "query_documents"):
            values = getattr(self, name)
            if values is not None:
                values = values.expand(rows.shape[0], -1) if values.ndim == 1 else values
                setattr(self, name, values.gather(1, rows))
        self.rows = rows + (self.keys - self.queries)
        self.queries = rows.shape[1]

    def all_keys(self) -> AttentionScope:
        """The scope of every key as a query, what came before them included."""
        return AttentionScope(
            self.keys,
            self.keys,
            self.causal,
            self.key_mask,
            query_documents=self.key_documents,
            key_documents=self.key_documents,
        )


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope, *, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention over what `scope` allows: (b, h, queries, c)."""
    if scope.bias is not None:
        bias = scope.bias if bias is None else bias + scope.bias
    if bias is None and scope.is_plain:
        return sdpa_zero_empty(q, k, v, causal=scope.causal, dropout=dropout)
    if scope.rows is not None and bias is None:
        mask = scope.beside_order()
        return attend_from_rows(q, k, v, scope.rows, causal=scope.causal, mask=mask, dropout=dropout)
    if bias is None and scope.key_documents is not None and scope.queries == scope.keys:
        return packed_attention(
            q, k, v, scope.key_documents, causal=scope.causal, key_mask=scope.key_mask, dropout=dropout
        )
    return sdpa_zero_empty(q, k, v, mask=scope.allowed(q.device), bias=bias, dropout=dropout)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scope: AttentionScope,
    window: int,
    *,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`sliding_window_attention` over whatever `scope` describes, a few queries behind many cached keys included."""
    if scope.queries == scope.keys:
        return sliding_window_attention(
            q,
            k,
            v,
            window,
            causal=scope.causal,
            key_mask=scope.key_mask,
            documents=scope.key_documents,
            bias=bias,
            dropout=dropout,
        )
    if bias is None:
        # Where all keys are near enough, the band is plain causality.
        near = None if scope.keys <= window else window
        return sdpa_zero_empty(q, k, v, mask=scope.allowed(q.device, near), dropout=dropout)
    added = bias_by_lag(bias, scope.lags(q.device))  # (1, h, queries, keys)
    mask = scope.allowed(q.device, window)
    near = (added > -torch.inf) if mask is None else mask & (added > -torch.inf)
    return sdpa_zero_empty(q, k, v, mask=near, bias=added, dropout=dropout)


def document_positions(documents: Tensor) -> Tensor:
    """Positions that start again at 0 with every document: (b, s) numbers → (b, s) int64.

    Example:
        >>> document_positions(torch.tensor([[7, 7, 7, 8, 8]])).tolist()
        [[0, 1, 2, 0, 1]]
    """
    rows = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.where(document_starts(documents), rows, 0)
    return rows - starts.cummax(dim=1).values


def count_in_document(real: Tensor, documents: Tensor | None) -> Tensor:
    """How many tokens of its document are real up to each: real (b, s) bool, (b, s) numbers → (b, s) int64."""
    counts = real.cumsum(1)
    if documents is None:
        return counts
    first = torch.arange(real.shape[1], device=real.device) - document_positions(documents)  # (b, s)
    return counts - (counts - real.long()).gather(1, first)


def document_starts(documents: Tensor) -> Tensor:
    """Whether a token is the first of its document: (b, s) numbers → (b, s) bool."""
    first = torch.ones_like(documents[:, :1], dtype=torch.bool)
    return torch.cat([first, documents[:, 1:] != documents[:, :-1]], dim=1)
