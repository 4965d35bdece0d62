"""A block for some tokens: one function for all that decide per token whether a layer acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cubelet.models.cache import CacheGroup
from cubelet.models.kernels.routing import may_skip_rows, open_rows, put_rows

from .gates import gated_update, hard_gate

WORTH = 0.9  # share of open rows above which computing all costs no more than gathering


class DeferredCache(CacheGroup):
    """A block's cache, and tokens at which nobody asked: their keys and values are written when somebody does."""

    def __init__(self, block_cache: Any, batch_size: int, max_length: int) -> None:
        super().__init__(block_cache)
        self.batch_size, self.max_length = batch_size, max_length
        self.waiting: list[tuple[Tensor, dict[str, Tensor | None]]] = []
        self._waiting_tokens = 0  # counted: adding up the list at every step would be quadratic

    @property
    def length(self) -> int:
        """Tokens read so far, the waiting ones included."""
        return self.parts[0].length + self._waiting_tokens

    def defer(self, x: Tensor, options: dict[str, Any]) -> None:
        """Keep tokens x (b, s, d) for later; ValueError where they do not fit."""
        new = x.shape[1]
        if x.shape[0] != self.batch_size or self.length + new > self.max_length:
            raise ValueError(
                f"this cache is for a batch of {self.batch_size} and max_length {self.max_length}; {self.length} "
                f"tokens are held, and {new} more came for a batch of {x.shape[0]}"
            )
        mask = options.get("key_mask")
        told = {name: options.get(name) for name in ("positions", "documents")}
        told["key_mask"] = None if mask is None else mask[:, mask.shape[1] - new :]
        self.waiting.append((x, told))
        self._waiting_tokens += new

    def collect(self, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The waiting tokens and x as one input, with what was told about each; nothing waits afterwards."""
        mask, total = options.get("key_mask"), self.length + x.shape[1]
        told = {name: options.get(name) for name in ("positions", "documents", "key_mask")}
        pieces = [*self.waiting, (x, told)]
        self.waiting, self._waiting_tokens = [], 0
        merged: dict[str, Any] = dict(options)
        for name in ("positions", "documents"):
            values = [piece[name] for _, piece in pieces]
            if all(value is not None for value in values):
                if len({value.ndim for value in values}) > 1:
                    values = [value.expand(x.shape[0], -1) if value.ndim == 1 else value for value in values]
                merged[name] = torch.cat(values, dim=-1)
            elif any(value is not None for value in values):
                raise ValueError(f"{name} were given for some of the cached tokens; give them always or never")
        if mask is None or mask.shape[1] != total:
            own = [piece["key_mask"] for _, piece in pieces]
            if any(value is not None for value in own):
                ones = torch.ones_like(pieces[0][0][..., 0], dtype=torch.bool)[:, :1]
                merged["key_mask"] = torch.cat(
                    [ones.expand(-1, t.shape[1]) if m is None else m for m, (t, _) in zip(own, pieces, strict=True)], 1
                )
        return torch.cat([tokens for tokens, _ in pieces], dim=1), merged

    def reorder(self, indices: Tensor) -> None:
        super().reorder(indices)
        self._reorder_waiting(indices)

    def crop(self, length: int) -> None:
        gone = self.length - length
        while gone > 0 and self.waiting:
            x, told = self.waiting.pop()
            left = x.shape[1] - gone
            if left > 0:
                cut = {name: None if value is None else value[..., :left] for name, value in told.items()}
                self.waiting.append((x[:, :left], cut))
            gone -= x.shape[1]
        self._waiting_tokens = sum(x.shape[1] for x, _ in self.waiting)
        super().crop(min(length, self.parts[0].length))

    def _select(self, indices: Tensor, old: Tensor, context: Tensor, mask: Tensor | None) -> None:
        super()._select(indices, old, context, mask)
        self._reorder_waiting(indices)

    def _reorder_waiting(self, indices: Tensor) -> None:
        self.batch_size = indices.shape[0]
        self.waiting = [
            (x[indices], {n: v[indices] if v is not None and v.ndim == 2 else v for n, v in told.items()})
            for x, told in self.waiting
        ]


def take_step(
    block: nn.Module, x: Tensor, context: Tensor | None, soft: Tensor, cache: Any, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None] | None:
    """`update_open` for one token a row whose gates all agree, decided without a tensor; None where that is not so.

    A step through an open block costs 9 % more than one through the block alone, by `update_open` 14 %.
    """
    if not isinstance(cache, DeferredCache) or x.shape[1] != 1 or not may_skip_rows():
        return None
    if not getattr(block, "accepts_rows", False):
        return None
    opened = sum(probability > 0.5 for probability in soft.flatten().tolist())
    if not opened:
        cache.defer(x, options)
        return x, None
    if opened < x.shape[0] or cache.waiting:
        return None
    return block(x, context, cache=cache.parts[0], **options)


def update_open(
    block: nn.Module,
    x: Tensor,
    context: Tensor | None,
    soft: Tensor,
    options: dict[str, Any],
    alive: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """block(x) where a token's gate is open, x elsewhere; closed rows are not computed where no gradient asks for them.

    Args:
        block: called as block(x, context, **options) → (y, cost), and with `rows=` where it has `accepts_rows`.
        x: (b, s, d).
        soft: (b, s), probability that the gate is open: it is above ½.
        options: what else the block is called with; of padding nothing but keys is computed.
        alive: (b, s), 0 where a token passes whatever its gate says, 1 elsewhere.

    Returns:
        (b, s, d), the block's cost, and whether each token was changed, (b, s) zeros and ones.
    """
    cache = options.get("cache")
    if isinstance(cache, DeferredCache):
        options = options | {"cache": cache.parts[0]}
    if not (getattr(block, "accepts_rows", False) and may_skip_rows()):
        y, cost = block(x, context, **options)
        used = hard_gate(soft) if alive is None else alive * hard_gate(soft)
        soft = soft if alive is None else alive.detach() * soft
        return gated_update(x, y, used[..., None].to(y.dtype), soft[..., None].to(y.dtype)), cost, used
    is_open, key_mask = soft > 0.5, options.get("key_mask")
    is_open = is_open if alive is None else is_open & (alive > 0.5)
    if key_mask is not None:
        is_open = is_open & key_mask[:, key_mask.shape[1] - x.shape[1] :]
    used, length = is_open.to(soft.dtype), x.shape[1]
    chosen = open_rows(is_open)
    if isinstance(cache, DeferredCache):
        if chosen is not None and not chosen[0].shape[1]:
            cache.defer(x, options)
            return x, None, used
        if cache.waiting:
            everything, options = cache.collect(x, options)
            before = everything.shape[1] - length
            if chosen is None:
                chosen = torch.arange(length, device=x.device).expand(x.shape[0], -1), None
            y, cost = block(everything, context, rows=chosen[0] + before, **options)
            return put_rows(x, *chosen, y), cost, used
    if chosen is None:
        y, cost = block(x, context, **options)
        return y, cost, used
    rows, valid = chosen
    if rows.shape[1] > WORTH * length:
        y, cost = block(x, context, **options)
        return torch.where(is_open[..., None], y, x), cost, used
    y, cost = block(x, context, rows=rows, **options)
    return put_rows(x, rows, valid, y), cost, used
