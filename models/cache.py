"""What attention keeps between decoding steps, as explicit objects that the caller makes and passes in.

`KVCache` is what `decoder.new_cache(batch_size, max_length)` returns: one `LayerCache` (or a group of them) per block.
A layer cache holds one or several streams of rows (keys, values, and whatever else a variant must remember), the
positions the caller gave them, and which of them are padding. Choices made here:

- Keys are stored as they were written, that is already rotated. A cache remembers the `base_version` of the rotary
  that turned them and refuses rows turned with another base, since the two cannot be compared.
- Rows are kept in the order of writing; a windowed cache keeps the last `window − 1` of them, so its cost does not
  depend on how much was read before. The newest row is always last: masks follow from counting back from it.
- For inference: rows are stored detached, no gradient flows through a cache.
- Lengths are Python integers, never read from a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LayerCache:
    """Rows of one attention layer.

    Args:
        batch_size: sequences decoded together.
        max_length: most tokens that will be written; the buffers of an unbounded cache are allocated for it.
        shapes: one (heads, width) per stream; keys and values are the first two.
        window: keep only the `window − 1` rows that a later query can still see; None keeps all.
        device, dtype: of the buffers. Returned rows have the dtype of the rows passed in.
    """

    def __init__(
        self,
        batch_size: int,
        max_length: int,
        shapes: Sequence[tuple[int, int]],
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(f"a cache needs batch_size and max_length ≥ 1, got {batch_size} and {max_length}")
        if window is not None and window < 1:
            raise ValueError(f"a cache's window counts the query itself and is at least 1, got {window}")
        self.batch_size, self.max_length, self.window = batch_size, max_length, window
        rows = max_length if window is None else 0
        self.streams = [torch.zeros(batch_size, h, rows, c, device=device, dtype=dtype) for h, c in shapes]
        self.length = 0
        self._positions: Tensor | None = None  # (rows,) or (b, rows)
        self._valid: Tensor | None = None  # (b, s) bool, only once padding was seen
        self._version: int | None = None

    @property
    def kept(self) -> int:
        """Rows that the next update will return besides its own."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def check_version(self, version: int) -> None:
        """Remember the version of the base that turned the keys; refuse a change while rows are held."""
        if self.length and self._version is not None and version != self._version:
            raise RuntimeError(
                f"the rotary base changed (version {self._version} → {version}) while {self.length} keys turned with "
                "the old base are cached: make a new cache and read the prompt again"
            )
        self._version = version

    def update(
        self, *streams: Tensor, positions: Tensor | None = None, key_mask: Tensor | None = None
    ) -> tuple[Any, ...]:
        """Append rows and return all that a query among them may need.

        Args:
            streams: as many (b, heads, s, width) as the cache was made for.
            positions: (s,) or (b, s) of the new rows; None counts on from the rows before.
            key_mask: (b, s) bool for the new rows, or (b, length + s) for all since the first; None: no new padding.

        Returns:
            The streams, each (b, heads, kept + s, width), then their positions, (kept + s,) or (b, kept + s). Whether
            any row is padding is in `valid` afterwards.

        Raises:
            ValueError: more rows than `max_length`, another batch size, another number of streams.
        """
        new, kept = streams[0].shape[2], self.kept
        if len(streams) != len(self.streams) or streams[0].shape[0] != self.batch_size:
            raise ValueError(
                f"this cache holds {len(self.streams)} streams for a batch of {self.batch_size}; "
                f"got {len(streams)} for a batch of {streams[0].shape[0]}"
            )
        if self.length + new > self.max_length:
            raise ValueError(
                f"the cache was made for max_length {self.max_length} tokens; {self.length} are held and {new} more "
                "came: ask new_cache for more"
            )
        self._update_positions(positions, new, kept, streams[0].device)
        self._update_valid(key_mask, new, kept, streams[0].device)
        rows = [self._append(index, stream, kept) for index, stream in enumerate(streams)]
        self.length += new
        return (*rows, self._positions)

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Positions of the next `new` rows where the caller names none: on from the last row's, (new,) or (b, new)."""
        if self._positions is None or not self._positions.shape[-1]:
            return torch.arange(self.length, self.length + new, device=device)
        return self._positions[..., -1:] + torch.arange(1, new + 1, device=device)

    @property
    def valid(self) -> Tensor | None:
        """(b, rows) bool, False = padding, for the rows the last update returned; None while there was no padding."""
        return self._valid

    def reorder(self, indices: Tensor) -> None:
        """Let row i of the batch go on from what row `indices[i]` had read (beam search). indices (b,) int64."""
        self.streams = [stream.index_select(0, indices) for stream in self.streams]
        if self._valid is not None:
            self._valid = self._valid.index_select(0, indices)
        if self._positions is not None and self._positions.ndim == 2:
            self._positions = self._positions.index_select(0, indices)

    def _append(self, index: int, rows: Tensor, kept: int) -> Tensor:
        held, new = self.streams[index], rows.detach()
        if self.window is None:
            with torch.no_grad():
                held[:, :, self.length : self.length + rows.shape[2]] = new
            joined = held[:, :, : self.length + rows.shape[2]]
        else:
            joined = torch.cat([held[:, :, held.shape[2] - kept :], new.to(held.dtype)], dim=2)
            tail = joined[:, :, max(0, joined.shape[2] - self.window + 1) :]
            # A short tail is copied, so that a long prompt's rows are freed.
            self.streams[index] = tail.clone() if 2 * tail.shape[2] < joined.shape[2] else tail
        return joined.to(rows.dtype)

    def _update_positions(self, positions: Tensor | None, new: int, kept: int, device: torch.device) -> None:
        if positions is None:
            positions = self.next_positions(new, device)
        before = self._positions
        if before is None:
            before = torch.arange(0, device=device)
        before = before[..., before.shape[-1] - kept :]
        if positions.ndim != before.ndim:
            before, positions = (p.expand(self.batch_size, -1) if p.ndim == 1 else p for p in (before, positions))
        self._positions = torch.cat([before, positions], dim=-1)

    def _update_valid(self, key_mask: Tensor | None, new: int, kept: int, device: torch.device) -> None:
        if key_mask is None and self._valid is None:
            return
        if key_mask is not None and key_mask.shape[1] == self.length + new:
            self._valid = key_mask[:, self.length - kept :]
            return
        before = self._valid
        if before is None:
            before = torch.ones(self.batch_size, kept, dtype=torch.bool, device=device)
        if key_mask is None:
            key_mask = torch.ones(self.batch_size, new, dtype=torch.bool, device=device)
        self._valid = torch.cat([before[:, before.shape[1] - kept :], key_mask], dim=1)


class CacheGroup:
    """Several caches that one module fills together (a block's, or the branches of a joined attention)."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.parts[0].length

    def reorder(self, indices: Tensor) -> None:
        """Reorder every part along the batch; indices (b,) int64."""
        for part in self.parts:
            part.reorder(indices)


class ContextCache:
    """Keys and values of cross-attention, made once for as long as the same context tensor is passed in.

    The context is compared by identity: another tensor, even with equal contents, is projected anew. Hence a reordered
    batch needs no care here: whoever reorders passes a reordered context.
    """

    length = 0

    def __init__(self) -> None:
        self.context: Tensor | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reorder(self, indices: Tensor) -> None:
        """Nothing to do: see the class."""


class KVCache(CacheGroup):
    """The cache of a whole decoder: `layers[i]` belongs to block i."""

    def __init__(self, layers: Sequence[Any]) -> None:
        if not layers:
            raise ValueError("a KVCache needs the cache of at least one layer")
        super().__init__(*layers)

    @property
    def layers(self) -> list[Any]:
        """The blocks' caches, in order."""
        return self.parts
