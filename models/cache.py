"""What attention keeps between decoding steps, as explicit objects that the caller makes and passes in.

`KVCache` is what `decoder.new_cache(batch_size, max_length)` returns: one `LayerCache` (or a group of them) per block.
A layer cache holds one or several streams of rows (keys, values, and whatever else a variant must remember), the
positions the caller gave them, which of them are padding, and which document they belong to. Choices made here:

- Keys are stored as they were written, that is already rotated. A cache remembers the `base_version` of the rotary
  that rotated them and refuses rows of another base, since the two cannot be compared.
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

from cubelet.common.checks import check_at_least
from cubelet.models.kernels.switch import use_fast_path

ROW_FACTS = ("positions", "valid", "documents")  # what a `LayerCache` knows of each row


class LayerCache:
    """Rows of one attention layer.

    Args:
        batch_size: sequences decoded together.
        max_length: most tokens that will be written; the buffers of an unbounded cache are allocated for it.
        shapes: one (heads, width) per stream; keys and values are the first two.
        window: keep only the `window − 1` rows that a later query can still see; None keeps all.
        device, dtype: of the buffers. Returned rows have the dtype of the rows passed in.

    Attributes:
        length: rows written so far.
        reserve: rows kept beyond the window, so that as many can be cropped; see `KVCache.reserve`.
        positions: (rows,) or (b, rows) of the rows the last update returned, or None before the first.
        valid: (b, rows) bool, False = padding, for the same rows; None while there was no padding.
        documents: (b, rows) integers for the same rows; None while there was one document.

    Example:
        >>> cache = LayerCache(1, 8, [(2, 4), (2, 4)])
        >>> keys, values, positions = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
        >>> keys.shape, cache.length, positions.tolist()
        (torch.Size([1, 2, 3, 4]), 3, [0, 1, 2])
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
        check_at_least("batch_size", batch_size, 1, "of a cache")
        check_at_least("max_length", max_length, 1, "of a cache")
        if window is not None:
            check_at_least("window", window, 1, "it counts the query itself")
        self.batch_size, self.max_length, self.window = batch_size, max_length, window
        rows = max_length if window is None else 0
        self.streams = [torch.zeros(batch_size, h, rows, c, device=device, dtype=dtype) for h, c in shapes]
        self.length = self.reserve = 0
        self.positions: Tensor | None = None
        self.valid: Tensor | None = None
        self.documents: Tensor | None = None
        # The same three for the rows that the streams hold: fewer where a window has moved on, more with a reserve.
        self._held: dict[str, Tensor | None] = dict.fromkeys(ROW_FACTS)
        self._version: int | None = None

    @property
    def kept(self) -> int:
        """Rows that the next update will return besides its own."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def check_version(self, version: int) -> None:
        """Remember the version of the base that rotated the keys; refuse a change while rows are held."""
        if self.length and self._version is not None and version != self._version:
            raise RuntimeError(
                f"the rotary base changed (version {self._version} → {version}) while {self.length} keys rotated with "
                "the old base are cached: make a new cache and read the prompt again"
            )
        self._version = version

    def update(
        self,
        *streams: Tensor,
        positions: Tensor | None = None,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Append rows and return all that a query among them may need.

        Args:
            streams: as many (b, heads, s, width) as the cache was made for.
            positions: (s,) or (b, s) of the new rows; None counts on from the rows before.
            key_mask: (b, s) bool for the new rows, or (b, length + s) for all since the first; None: no new padding.
            documents: (b, s) integers for the new rows; None goes on with the last row's.

        Returns:
            The streams, each (b, heads, kept + s, width), then their positions, (kept + s,) or (b, kept + s). The
            attributes `valid` and `documents` then describe the same rows.

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
        if positions is None:
            positions = self.next_positions(new, streams[0].device)
        held = self.length if self.window is None else self.streams[0].shape[2]
        if key_mask is not None and key_mask.shape[1] == self.length + new:
            before, key_mask = key_mask[:, : self.length], key_mask[:, self.length :]
            self._held["valid"] = before[:, self.length - held :] if held else None
        facts = {"positions": positions, "valid": key_mask, "documents": documents}
        for name, rows in facts.items():
            joined = self._extend(name, rows, held, new)  # (held + s,), (b, held + s) or None
            setattr(self, name, joined if joined is None or kept == held else joined[..., held - kept :])
            self._held[name] = None if joined is None else self._tail(joined, -1)
        rows = [self._append(index, stream, kept) for index, stream in enumerate(streams)]
        self.length += new
        return (*rows, self.positions)

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Positions of the next `new` rows where the caller names none: on from the last row's, (new,) or (b, new)."""
        held = self._held["positions"]
        if held is None or not held.shape[-1]:
            return torch.arange(self.length, self.length + new, device=device)
        return held[..., -1:] + (1 if new == 1 else torch.arange(1, new + 1, device=device))

    def reorder(self, indices: Tensor) -> None:
        """Let row i of the batch go on from what row `indices[i]` had read; indices (any new batch size,) int64."""
        self.batch_size = indices.shape[0]
        self.streams = [stream.index_select(0, indices) for stream in self.streams]
        for facts in (self.__dict__, self._held):
            for name in ROW_FACTS:
                rows = facts[name]
                facts[name] = rows if rows is None or rows.ndim == 1 else rows.index_select(0, indices)

    def crop(self, length: int) -> None:
        """Forget all rows but the first `length` written.

        Raises:
            ValueError: more than are held, or so far back that a windowed cache has dropped what would be needed.
        """
        gone = self.length - length
        if gone < 0 or length < 0:
            raise ValueError(f"crop to {length}: the cache holds {self.length} rows")
        if self.window is not None:
            held = self.streams[0].shape[2]
            if held - gone < min(length, self.window - 1):
                raise ValueError(
                    f"crop to {length} of {self.length} rows: a window of {self.window} keeps {held}; call "
                    f"reserve({gone}) on a new cache to be able to go back {gone}"
                )
            self.streams = [stream[:, :, : held - gone] for stream in self.streams]
        self.length = length
        for name, rows in self._held.items() if gone else ():
            self._held[name] = None if rows is None or rows.shape[-1] <= gone else rows[..., : rows.shape[-1] - gone]
            setattr(self, name, self._held[name])

    def _append(self, index: int, rows: Tensor, kept: int) -> Tensor:
        held, new = self.streams[index], rows.detach()
        if self.window is None:
            with torch.no_grad():
                held[:, :, self.length : self.length + rows.shape[2]] = new
            joined = held[:, :, : self.length + rows.shape[2]]
            return joined.to(rows.dtype)
        joined = torch.cat([held, new.to(held.dtype)], dim=2)  # (b, h, held + s, c)
        self.streams[index] = self._tail(joined, 2)
        return joined[:, :, joined.shape[2] - kept - new.shape[2] :].to(rows.dtype)

    def _tail(self, joined: Tensor, dim: int) -> Tensor:
        """What a window keeps of held and new rows along `dim`."""
        if self.window is None:
            return joined
        rows = joined.shape[dim]
        keep = min(rows, self.window - 1 + self.reserve)
        tail = joined.narrow(dim, rows - keep, keep)
        # A short tail is copied, so that a long prompt's rows are freed; in a graph every one, for equal strides.
        return tail.clone() if 2 * keep < rows or not use_fast_path("cache_view") else tail

    def _extend(self, name: str, new: Tensor | None, held: int, count: int) -> Tensor | None:
        """What is known of the held rows, then of `count` new ones: (rows,), or (b, rows) where one of the two is."""
        before = self._held[name]
        if not held or (before is None and new is None):
            # All layers are given the same tensors; a graph would ask at every call whether they still are.
            return new if new is None or use_fast_path("cache_view") else new.clone()
        if before is None:
            fill: Any = {"valid": True, "documents": 0}[name]
            before = torch.full((self.batch_size, held), fill, device=self.streams[0].device)
        if new is None:  # no padding; or on with the last document
            new = torch.ones_like(before[:, :1]) if name == "valid" else before[:, -1:]
            new = new.expand(-1, count)
        if new.ndim != before.ndim:
            before, new = (t.expand(self.batch_size, -1) if t.ndim == 1 else t for t in (before, new))
        return torch.cat([before, new], dim=-1)


class CacheGroup:
    """Several caches that one module fills together (a block's, or the branches of a parallel attention)."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.parts[0].length

    def reorder(self, indices: Tensor) -> None:
        """Reorder every part along the batch; indices (any new batch size,) int64."""
        for part in self.parts:
            part.reorder(indices)

    def crop(self, length: int) -> None:
        """Crop every part."""
        for part in self.parts:
            part.crop(length)

    def _held_position(self, length: int) -> Tensor | None:
        """Position of the last token, (1,) or (b, 1), from a part that holds it; None where none read every token."""
        for part in self.parts:
            held = part.positions if isinstance(part, LayerCache) and part.length == length else None
            if isinstance(part, CacheGroup):
                held = part._held_position(length)
            if held is not None and held.shape[-1]:
                return held[..., -1:]
        return None

    def _select(self, indices: Tensor, old: Tensor, context: Tensor, mask: Tensor | None) -> None:
        for part in self.parts:
            if isinstance(part, CacheGroup):
                part._select(indices, old, context, mask)
            elif isinstance(part, ContextCache):
                part.select(indices, old, context, mask)
            else:
                part.reorder(indices)

    def reserve(self, rows: int) -> None:
        """Keep `rows` more than the windows need, so that `crop` can go back as far."""
        for part in self.parts:
            if isinstance(part, LayerCache):
                part.reserve = rows
            elif isinstance(part, CacheGroup):
                part.reserve(rows)


class ContextCache:
    """Keys and values of cross-attention, made once for as long as the same context and mask are passed in.

    The context is compared by identity and version: another tensor, even with equal contents, is projected anew, and so
    is one that was changed in place. Hence a reordered batch needs no care here: whoever reorders passes a reordered
    context, or the same where rows only moved among equal ones (beams of one prompt).
    """

    length = 0

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._context: Tensor | None = None
        self._mask: Tensor | None = None
        self._version: int | None = None
        self._base_version: int | None = None  # of the rotary that rotated the keys

    def find(
        self, context: Tensor, key_mask: Tensor | None, base_version: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values of this context, or None where they are to be made."""
        if self.keys is None or self.values is None or self._context is not context:
            return None
        if self._base_version != base_version:
            return None
        if self._version != _version(context) or not _same(self._mask, key_mask):
            return None
        return self.keys, self.values

    def store(
        self,
        context: Tensor,
        key_mask: Tensor | None,
        keys: Tensor,
        values: Tensor,
        base_version: int | None = None,
    ) -> None:
        """Keep keys and values of a context."""
        self._base_version = base_version
        self._context, self._mask, self._version = context, key_mask, _version(context)
        self.keys, self.values = keys.detach(), values.detach()

    def select(self, indices: Tensor, old: Tensor, context: Tensor, key_mask: Tensor | None) -> None:
        """Keep the rows `indices` of what was made for `old`, as those of `context`."""
        if self.keys is not None and self.values is not None and self._context is old:
            self.store(context, key_mask, self.keys[indices], self.values[indices], self._base_version)

    def reorder(self, indices: Tensor) -> None:
        """Nothing to do: see the class."""

    def crop(self, length: int) -> None:
        """Nothing to do: the context is not what was decoded."""


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


class KVCache(CacheGroup):
    """The cache of a whole decoder: `layers[i]` belongs to block i.

    Example:
        >>> from cubelet.models import Decoder
        >>> decoder = Decoder(10, 32, 2, 4).eval()
        >>> cache = decoder.new_cache(1, 8)
        >>> _ = decoder(torch.tensor([[1, 2, 3]]), cache=cache)
        >>> cache.crop(2)
        >>> cache.length
        2
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        if not layers:
            raise ValueError("a KVCache needs the cache of at least one layer")
        super().__init__(*layers)
        self._before: int | None = None  # the length before a forward that is under way
        self._last: Tensor | None = None  # (1,) or (b, 1), position of the last token

    @property
    def layers(self) -> list[Any]:
        """The blocks' caches, in order."""
        return self.parts

    def begin(self) -> None:
        """Mark the start of a forward; RuntimeError where the one before never ended (an exception in its middle)."""
        if self._before is not None:
            raise RuntimeError(
                f"a forward over this cache failed half-way, so its layers hold different numbers of tokens: call "
                f"crop({self._before}) to go back to before it, or make a new cache"
            )
        self._before = self.length

    def end(self, positions: Tensor) -> None:
        """Mark the end of a forward over tokens at `positions`, (s,) or (b, s)."""
        self._before, self._last = None, positions[..., -1:].clone()

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Positions of the next `new` tokens: on from the last one's, (new,) or (b, new)."""
        steps = torch.arange(1, new + 1, device=device)
        return steps - 1 + self.length if self._last is None else self._last + steps

    def reorder(self, indices: Tensor) -> None:
        super().reorder(indices)
        self._reorder_positions(indices)

    def select(
        self, indices: Tensor, context: Tensor | None, context_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """`reorder`, the keys and values of the context included: returns context and mask to pass in from now on."""
        if context is None:
            self.reorder(indices)
            return None, None
        reordered = context[indices], None if context_mask is None else context_mask[indices]
        self._select(indices, context, *reordered)
        self._reorder_positions(indices)
        return reordered

    def crop(self, length: int) -> None:
        gone = (self.length if self._before is None else self._before) - length
        super().crop(length)
        self._before = None
        if self._last is not None and gone:  # what is gone may have begun to count anew: the layers know
            held = self._held_position(length)
            self._last = held if held is not None or not length else self._last - gone

    def _reorder_positions(self, indices: Tensor) -> None:
        if self._last is not None and self._last.ndim == 2:
            self._last = self._last[indices]
