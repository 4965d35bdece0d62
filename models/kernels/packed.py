"""Attention over rows that hold several documents one after the other.

Formula: `sdpa_zero_empty(q, k, v, mask=same_document & causal & key_mask)`.

Fast path: on the CPU lengths can be read at no cost, and a mask makes torch's kernel compute all s² scores of which a
packed row needs few. There the row is cut at the borders, and each document goes through the kernel alone, without a
mask. At s = 1,024 with 8 documents of 44 … 267 tokens a decoder of dims 256 takes 0.80 of an unpacked row's time, the
formula 1.22 (forward alone 0.84 and 1.31). Many short documents in a short row take the formula: each costs a call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sdpa import sdpa_zero_empty
from .switch import use_fast_path

# A call of the kernel costs about what scores of 64 × 64 tokens cost, all heads together.
TOKENS_PER_CALL = 64


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within documents.

    Args:
        q: (b, h, s, c). k, v: (b, h or a divisor of it, s, c).
        documents: (b, s) integers, equal within a document, whose tokens follow each other.
        causal: whether a query sees only itself and earlier ones.
        key_mask: (b, s) bool, True = may be attended.
        dropout: probability, on the attention weights.

    Returns:
        (b, h, s, c); what stands in padding has no meaning.

    Example:
        >>> q = torch.zeros(1, 1, 4, 2)
        >>> v = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 2)
        >>> packed_attention(q, q, v, torch.tensor([[0, 0, 1, 1]]), causal=False)[0, 0, :, 0].tolist()
        [0.5, 0.5, 2.5, 2.5]
    """
    if use_fast_path("packed") and q.device.type == "cpu":
        pieces = _pieces(documents, key_mask)
        if pieces is not None:
            return _piecewise(q, k, v, *pieces, causal, dropout)
    mask = documents[:, None, :, None] == documents[:, None, None, :]  # (b, 1, s, s)
    if causal:
        rows = torch.arange(q.shape[2], device=q.device)
        mask = mask & (rows[:, None] >= rows)
    if key_mask is not None:
        mask = mask & key_mask[:, None, None, :]
    return sdpa_zero_empty(q, k, v, mask=mask, dropout=dropout)


def _pieces(documents: Tensor, key_mask: Tensor | None) -> tuple[list[int], list[bool]] | None:
    """Lengths of the runs of one document, or of padding, over all rows in order, and which are documents.

    None where that is no gain, or a document has padding in its middle.
    """
    batch, length = documents.shape
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    document = new.flatten().cumsum(0)  # (b·s,) number of the document, over all rows
    if key_mask is not None:
        new[:, 1:] |= key_mask[:, 1:] != key_mask[:, :-1]
    starts = new.flatten().nonzero()[:, 0]
    if len(starts) * TOKENS_PER_CALL**2 > batch * length**2:
        return None
    lengths = starts.diff(append=starts.new_tensor([batch * length])).tolist()
    if key_mask is None:
        return lengths, [True] * len(lengths)
    real = key_mask.flatten()[starts]
    owners = document[starts[real]]
    if len(owners.unique_consecutive()) < len(owners):
        return None
    return lengths, real.tolist()


def _piecewise(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], real: list[bool], causal: bool, dropout: float
) -> Tensor:
    batch, _, length, _ = q.shape
    grouped = q.shape[1] != k.shape[1]
    # Memory is that of (b, s, h, c), so this is a view; one split of all rows has one concatenation as gradient.
    rows = (t.permute(1, 0, 2, 3).flatten(1, 2).split(lengths, dim=1) for t in (q, k, v))  # (h, n, c) each
    outs = [
        F.scaled_dot_product_attention(
            qs[None], ks[None], vs[None], is_causal=causal, dropout_p=dropout, enable_gqa=grouped
        )[0]
        if is_real
        else qs.new_zeros(qs.shape[0], qs.shape[1], vs.shape[2])
        for qs, ks, vs, is_real in zip(*rows, real, strict=True)
    ]
    return torch.cat(outs, dim=1).unflatten(1, (batch, length)).transpose(0, 1)  # (b, h, s, c)
