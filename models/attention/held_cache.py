"""The cache of held keys: a key that is held over n tokens is one row, with log n added to its score.

softmax over n equal keys is softmax over one of them with n times its weight, so this is exact, and decoding costs what
was taken, not what was read. The rows of a batch take tokens at different steps; where a batch row took none, its slot
stays empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cubelet.models.cache import LayerCache
from cubelet.models.kernels.routing import can_read_values, take_rows

from .masking import AttentionScope


class HeldCache(LayerCache):
    """Taken keys and values, and how many tokens each was held for; made by `ContentGatedAttention.new_cache`.

    Attributes:
        rows: slots in use; the streams' first `rows` rows.
        filled: (b, max_length) bool, slots that hold a key.
        counts: (b, max_length) float32, tokens that each slot's key stands for.
        last: (b, 1) int64, slot of the key that is held now.
        is_begun: whether every row of the batch holds a key.
    """

    def __init__(self, batch_size: int, max_length: int, shapes: Any, **where: Any) -> None:
        super().__init__(batch_size, max_length, shapes, **where)
        device = self.streams[0].device
        self.rows = 0
        self.filled = torch.zeros(batch_size, max_length, dtype=torch.bool, device=device)
        self.padded = torch.zeros(batch_size, max_length, dtype=torch.bool, device=device)  # by token
        self.firsts = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)  # token a slot was taken at
        self.counts = torch.zeros(batch_size, max_length, device=device)
        self.ones = torch.ones(batch_size, 1, device=device)
        self.numbers = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)  # documents
        self.has_documents = self.has_gaps = self.is_begun = False
        self.last = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self._in_use: list[Tensor] = []  # views of the slots in use, for steps at which nothing is taken

    def held(self, index: int) -> Tensor:
        """What is held now of stream `index`: (b, heads, 1, width)."""
        stream = self.streams[index]
        at = self.last[:, None, :, None].expand(-1, stream.shape[1], -1, stream.shape[3])
        return stream.gather(2, at)

    def read(self, k: Tensor, v: Tensor, taken: Tensor, scope: AttentionScope) -> tuple[Tensor, Tensor]:
        """Slots so far and the new rows as keys and values, described in `scope`; then the new rows become slots.

        Args:
            k, v: (b, g, s, c) of the new tokens, what is held copied to each.
            taken: (b, s) bool, which of them begin to be held.
            scope: of the new tokens alone; afterwards of all, `bias` the log of how often each key stands there.
        """
        new, before = k.shape[2], self.rows
        self._check_room(k.shape[0], new)
        real = torch.ones_like(taken) if scope.key_mask is None else scope.key_mask[:, scope.key_mask.shape[1] - new :]
        documents = scope.query_documents
        if documents is None and self.has_documents:
            documents = self.numbers.gather(1, self.last).expand(-1, new)
        self.has_documents = documents is not None
        keys, values = (
            self._with(stream, rows, before)  # (b, g, slots + s, c)
            for stream, rows in zip(self.streams, (k, v), strict=True)
        )
        # Empty slots get log 0 = −inf.
        logs = torch.cat([self.counts[:, :before].log(), torch.zeros_like(taken, dtype=torch.float32)], dim=1)
        scope.bias = logs[:, None, None, :]  # (b, 1, 1, slots + s)
        scope.keys = before + new
        self.has_gaps = self.has_gaps or scope.key_mask is not None
        scope.key_mask = torch.cat([self.filled[:, :before], real], dim=1) if self.has_gaps else None
        scope.key_positions = None
        if documents is not None:
            scope.key_documents = torch.cat([self.numbers[:, :before], documents], dim=1)
            scope.query_documents = documents
        self._add(k, v, taken, real, documents)
        at = scope.query_positions
        self.positions = (self.next_positions(new, k.device) if at is None else at)[..., -1:].clone()
        self._held["positions"] = self.positions
        self.length += new
        return keys, values

    def step(
        self, positions: Tensor | None, k: Tensor | None = None, v: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One more token of every row, at positions (1,) or (b, 1): all rows take k and v (b, g, 1, c), or none does.

        Returns:
            Keys and values (b, g, slots, c), and what is added to scores, (b, 1, 1, slots).
        """
        self._check_room(self.batch_size if k is None else k.shape[0], 1)
        if k is None or v is None:
            self.counts.scatter_add_(1, self.last, self.ones)
        else:
            slot = self.rows
            for stream, row in zip(self.streams, (k, v), strict=True):
                stream[:, :, slot : slot + 1] = row
            self.filled[:, slot], self.counts[:, slot], self.firsts[:, slot] = True, 1.0, self.length
            self.last, self.rows = torch.full_like(self.last, slot), slot + 1
            self.valid = self.filled[:, : self.rows]
            self._in_use = []
        self.positions = self._held["positions"] = positions
        self.length += 1
        if not self._in_use:
            self._in_use = [stream[:, :, : self.rows] for stream in self.streams]
            self._in_use.append(self.counts[:, None, None, : self.rows])
        keys, values, counts = self._in_use
        return keys, values, counts.log()

    def _check_room(self, batch: int, new: int) -> None:
        if batch != self.batch_size:
            raise ValueError(f"this cache holds a batch of {self.batch_size}; got a batch of {batch}")
        if self.length + new > self.max_length:
            raise ValueError(
                f"the cache was made for max_length {self.max_length} tokens; {self.length} are held and {new} more "
                "came: ask new_cache for more"
            )

    def _with(self, stream: Tensor, rows: Tensor, before: int) -> Tensor:
        """The slots of a stream and new rows behind them."""
        if rows.shape[2] > 1 or rows.requires_grad:
            return torch.cat([stream[:, :, :before].to(rows.dtype), rows], dim=2)
        # One row is written where it will stand if it was taken, and is never read if it was not: nothing is copied.
        stream[:, :, before : before + 1] = rows
        return stream[:, :, : before + 1].to(rows.dtype)

    @torch.no_grad()
    def _add(self, k: Tensor, v: Tensor, taken: Tensor, real: Tensor, documents: Tensor | None) -> None:
        new, is_readable = taken.shape[1], can_read_values(taken)
        # Where the number taken cannot be read (in a graph), every token gets a slot, those not taken an empty one.
        slots = slice(self.rows, self.rows + (int(taken.sum(1).max()) if is_readable else new))
        nth = taken.cumsum(1)  # (b, s)
        slot = torch.where(nth > 0, self.rows + nth - 1, self.last)
        if slots.stop > slots.start:
            order = (~taken).long().argsort(dim=1, stable=True)[:, : slots.stop - slots.start]  # (b, new slots)
            for stream, rows in zip(self.streams, (k, v), strict=True):
                stream[:, :, slots] = take_rows(rows.transpose(1, 2), order).transpose(1, 2).to(stream.dtype)
            self.filled[:, slots] = take_rows(taken, order)
            self.firsts[:, slots] = order + self.length
            if documents is not None:
                self.numbers[:, slots] = take_rows(documents, order)
            self.has_gaps = self.has_gaps or not is_readable or not bool(self.filled[:, slots].all())
        self.counts.scatter_add_(1, slot, real.to(self.counts.dtype))
        self.padded[:, self.length : self.length + new] = ~real
        self.last, self.rows = slot[:, -1:].clone(), slots.stop  # views would tie a graph to the prompt's length
        self.is_begun = self.is_begun or (is_readable and bool(self.filled[:, : self.rows].any(1).all()))
        self.valid, self._in_use = self.filled[:, : self.rows], []
        self.documents = self.numbers[:, : self.rows] if self.has_documents else None

    def reorder(self, indices: Tensor) -> None:
        super().reorder(indices)
        self._in_use = []
        for name in ("filled", "padded", "firsts", "counts", "ones", "numbers", "last"):
            setattr(self, name, getattr(self, name).index_select(0, indices))

    def crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"crop to {length}: the cache holds {self.length} rows")
        gone = self.length - length
        self.padded[:, length:] = False
        real = ~self.padded & (torch.arange(self.max_length, device=self.padded.device) < length)
        kept = self.filled & (self.firsts < length)
        counted = real.long().cumsum(1)  # real tokens up to each
        self.last = (kept.long().cumsum(1) * kept).argmax(1, keepdim=True)
        first = self.firsts.gather(1, self.last)
        since = counted[:, -1:] - counted.gather(1, first) + real.gather(1, first).long()
        self.counts = (self.counts * kept).scatter(
            1, self.last, since.to(self.counts.dtype) * kept.any(1, keepdim=True)
        )
        self.filled, self.length, self.has_gaps = kept, length, True
        self.rows = int(kept.long().cumsum(1).argmax(1).max()) + int(kept.any())
        self.is_begun = bool(kept.any(1).all())
        self.valid, self._in_use = self.filled[:, : self.rows], []
        self.documents = self.numbers[:, : self.rows] if self.has_documents else None
        self.positions = None if self.positions is None or not length else self.positions - gone
        self._held["positions"] = self.positions
