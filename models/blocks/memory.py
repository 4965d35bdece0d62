"""Running means over the tokens so far, the working memory of `MyelinatedBlock`, and what they keep while decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cubelet.models.attention.masking import document_positions, document_starts


class PrefixSums:
    """Running sums for prefix means, one (b, 1, width) per inner layer, and the number of tokens (b, 1, 1)."""

    def __init__(self, batch_size: int, widths: list[int], device: Any, dtype: Any) -> None:
        self.sums = [torch.zeros(batch_size, 1, width + 1, device=device, dtype=dtype) for width in widths]
        self.document: Tensor | None = None  # (b, 1), number of the document the sums are of
        self.length = 0

    def reorder(self, indices: Tensor) -> None:
        """Reorder along the batch."""
        self.sums = [sums[indices] for sums in self.sums]
        self.document = None if self.document is None else self.document[indices]

    def crop(self, length: int) -> None:
        """ValueError: sums cannot go back."""
        if length != self.length:
            raise ValueError(
                f"crop to {length} of {self.length} tokens: a running mean does not know what it was before; make a "
                "new cache and read the tokens again"
            )


def memory_mean(
    x: Tensor,
    real: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    causal: bool = True,
    sums: PrefixSums | None = None,
    layer: int = 0,
) -> Tensor:
    """Mean over the tokens up to each (not causal: over all) of its document.

    Args:
        x: (b, s, d).
        real: (b, s) bool, False leaves out padding.
        documents: (b, s) integers, or None for one document.
        sums: go on from what `layer` had read; causal only.

    Returns:
        (b, s, d); 0 where there is nothing to average.

    Example:
        >>> memory_mean(torch.tensor([[[2.0], [4.0], [6.0]]])).flatten().tolist()
        [2.0, 3.0, 4.0]
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if documents is not None:  # means of late documents are differences of long sums
        wide = torch.promote_types(wide, torch.float64)
    rows, count = x.to(wide), torch.ones_like(x[..., :1], dtype=wide)
    if real is not None:
        rows, count = (t.masked_fill(~real[..., None], 0.0) for t in (rows, count))
    pairs = torch.cat([rows, count], dim=-1)  # (b, s, d + 1)
    total = pairs.cumsum(1)
    if documents is not None:
        total = _since_start(pairs, total, documents, causal)
    elif not causal:
        total = total[:, -1:].expand_as(total)
    if sums is not None:
        if sums.sums[layer].shape[0] != x.shape[0]:
            raise ValueError(f"this cache holds a batch of {sums.sums[layer].shape[0]}; got one of {x.shape[0]}")
        carried = sums.sums[layer].to(wide)  # (b, 1, d + 1)
        if documents is not None and sums.document is not None:
            carried = carried * (documents == sums.document)[..., None]
        total = total + carried
        # A copy, not a view: it would hold the whole sum, and its strides would ask for another compiled graph.
        sums.sums[layer] = total[:, -1:].detach().to(sums.sums[layer].dtype, copy=True)
    return (total[..., :-1] / total[..., -1:].clamp(min=1.0)).to(x.dtype)


def _since_start(rows: Tensor, total: Tensor, documents: Tensor, causal: bool) -> Tensor:
    """Sums (b, s, n) since each document's start, or over all of it."""
    starts = document_starts(documents)
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = index - document_positions(documents)  # (b, s)
    before = (total - rows).gather(1, first[..., None].expand_as(total))
    if not causal:
        is_last = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], dim=1)
        last = torch.where(is_last, index, documents.shape[1]).flip(1).cummin(1).values.flip(1)
        total = total.gather(1, last[..., None].expand_as(total))
    return total - before
