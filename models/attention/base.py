"""What every attention shares: the interface, the checks, the projections, the rotary and the cache.

A variant overrides `mix`, which gets queries, keys and values of all heads and says what comes out of each head.
Choices made here:

- One fused projection for queries, keys and values. A rotary's position-independent factor R is multiplied into its
  weight ("folding") wherever there are clearly more tokens than dims; then only the position-dependent turn touches
  activations, once for queries and keys together.
- The order is x W → R → optional RMS norm of each head → turn, so that folding is exact for every R. Where R is
  orthogonal this equals norming first.
- A gain-free qk-norm, because a gain would stand between R and the turn for nothing: scores only see one temperature.
- Padded inputs are zeroed before anything else, so neither values nor NaN in padding can reach a weight's gradient.
- Cross-attention (a `context`) is never causal and never rotated.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cache import ContextCache, LayerCache
from ..rotary.rotation_matrix import fold, right_multiply, worth_folding
from .norm import rms_norm
from .view import View


def check_heads(dims: int, heads: int, kv_heads: int | None = None, dropout: float = 0.0) -> int:
    """Head width; ValueError with the numbers where the arguments do not fit each other."""
    if dims < 1 or heads < 1 or dims % heads:
        raise ValueError(f"dims {dims} cannot be split over heads {heads}: dims must be a positive multiple of heads")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise ValueError(f"kv_heads {kv_heads} must divide heads {heads}, so that each serves as many queries")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout {dropout} must be at least 0 and below 1")
    return dims // heads


def rotary_axes(rotary: nn.Module | None, head_dim: int) -> int:
    """How many axes a rotary's positions have; ValueError where it was made for another head width."""
    theirs = getattr(rotary, "head_dim", head_dim)
    if theirs != head_dim:
        raise ValueError(f"the rotary was made for head_dim {theirs}; this attention has head_dim {head_dim}")
    return getattr(rotary, "position_axes", 1)


def check_mask(name: str, mask: Tensor, batch: int, lengths: tuple[int, ...]) -> None:
    """Refuse a mask that is not bool or not (batch, one of lengths)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {mask.dtype}; give torch.bool, True = may be attended (mask != 0 converts)")
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] not in lengths:
        wanted = " or ".join(str((batch, n)) for n in dict.fromkeys(lengths))
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected {wanted}: (batch, keys)")


class Attention(nn.Module):
    """Interface of all attentions; see `forward`.

    Class attributes say what a variant can do: `accepts_context` (cross-attention), `accepts_noncausal`,
    `is_local` (cost and cache bounded by a window).
    """

    accepts_context: ClassVar[bool] = True
    accepts_noncausal: ClassVar[bool] = True
    is_local: ClassVar[bool] = False

    def __init__(self, dims: int, heads: int, *, causal: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.dims, self.heads, self.causal, self.dropout = dims, heads, causal, dropout
        self.head_dim = check_heads(dims, heads, dropout=dropout)
        self.axes = 1
        if not causal and not self.accepts_noncausal:
            raise ValueError(f"{type(self).__name__} is defined by what came before a token: it needs causal=True")

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (b, s, dims).
            context: (b, s_k, dims) to attend to instead of x (cross-attention: not causal, not rotated).
            key_mask: bool, True = may be attended: (b, s_k) for a context, (b, s) without; with a cache (b, s) for the
                new tokens, or (b, cache.length + s) for all.
            positions: (s,) or (b, s) integers for rotations and distances; default: counted from 0, or on from the
                cache. Who comes before whom is decided by the order of rows, not by positions. For a rotary of n > 1
                axes (s, n) or (b, s, n), always to be given; distances then count rows.
            cache: from `new_cache`; the rows of x are appended to it.

        Returns:
            (b, s, dims). Rows that may attend nothing are zeros (plus the output's bias, if there is one).

        Raises:
            ValueError, TypeError: shapes or types that do not fit, with the numbers.
            RuntimeError: the rotary's base changed while keys are cached.
        """
        raise NotImplementedError

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """An empty cache for `forward(..., cache=)`, by default on the device and in the dtype of the parameters.

        Raises:
            NotImplementedError: the variant cannot decode step by step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cache: write new_cache, or decode without one")

    def new_context_cache(self) -> ContextCache:
        """A cache for cross-attention: keys and values are projected once per context tensor."""
        self._check_context()
        return ContextCache()

    def penalty(self) -> Tensor:
        """Sum of the penalties that depend on parameters alone, the rotary's included: 0-dim. Here none: 0."""
        return next(self.parameters()).new_zeros(())

    def zero_output(self) -> None:
        """Zero the output projection, so that a residual block starts as the identity. Here: a linear layer `out`."""
        out = getattr(self, "out", None)
        if isinstance(out, nn.Linear):
            nn.init.zeros_(out.weight)

    def _check_context(self) -> None:
        if not self.accepts_context:
            raise ValueError(
                f"{type(self).__name__} is self-attention only: its rule about which key is near or accepted has no "
                "meaning for a context; use MultiHeadAttention for cross-attention"
            )

    def _check_inputs(
        self, x: Tensor, context: Tensor | None, key_mask: Tensor | None, positions: Tensor | None, cache: Any
    ) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dims:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, tokens, dims {self.dims})")
        batch, length = x.shape[0], x.shape[1]
        if context is not None:
            self._check_context()
            if context.ndim != 3 or context.shape[0] != batch or context.shape[-1] != self.dims:
                raise ValueError(
                    f"context has shape {tuple(context.shape)}; expected (batch {batch}, keys, dims {self.dims})"
                )
            length = context.shape[1]
        if key_mask is not None:
            past = 0 if cache is None or context is not None else cache.length
            check_mask("key_mask", key_mask, batch, (length, past + length))
        if positions is not None:
            check_positions(positions, batch, x.shape[1], self.axes)


def check_positions(positions: Tensor, batch: int, length: int, axes: int = 1) -> None:
    """Refuse positions other than integers (s,) or (b, s); for several axes: (s, axes) or (b, s, axes), any dtype."""
    tail = (length,) if axes == 1 else (length, axes)
    if tuple(positions.shape) not in (tail, (batch, *tail)):
        raise ValueError(f"positions have shape {tuple(positions.shape)}; expected {tail} or {(batch, *tail)}")
    if axes == 1 and positions.is_floating_point():
        raise TypeError(f"positions have dtype {positions.dtype}; give integers")


def blank_padding(x: Tensor, key_mask: Tensor | None) -> Tensor:
    """x (b, s, d) with padded rows zeroed; a mask over more than s keys says about x in its last s columns."""
    if key_mask is None:
        return x
    own = key_mask[:, key_mask.shape[1] - x.shape[1] :]
    return x.masked_fill(~own[..., None], 0.0)


class ProjectedAttention(Attention):
    """Attention with its own fused projections; variants override `mix`, some also `features`.

    Args:
        dims, heads: width of the model, number of query heads.
        rotary: turns queries and keys of self-attention.
        causal: whether a token sees only itself and earlier ones.
        dropout: on attention weights.
        kv_heads: heads of keys and values (grouped-query attention, https://arxiv.org/abs/2305.13245); divides heads.
        qk_norm: RMS-normalise queries and keys per head.
        bias: biases in the projections.
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: nn.Module | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__(dims, heads, causal=causal, dropout=dropout)
        check_heads(dims, heads, kv_heads)
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.qk_norm = qk_norm
        self.rotary = rotary
        self.axes = rotary_axes(rotary, self.head_dim)
        self._turned = (heads + self.kv_heads) * self.head_dim  # rows of qkv that a rotary acts on
        self.qkv = nn.Linear(dims, self._turned + self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(dims, dims, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of deviation dims^−½, zero biases."""
        for linear in (self.qkv, self.out):
            nn.init.normal_(linear.weight, std=self.dims**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def penalty(self) -> Tensor:
        if self.rotary is None:
            return self.out.weight.new_zeros(())
        return self.rotary.penalty()  # type: ignore[operator]

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LayerCache:
        weight = self.qkv.weight
        return LayerCache(
            batch_size,
            max_length,
            [(self.kv_heads, self.head_dim)] * 2 + self.stream_shapes(),
            window=self.cache_window(),
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )

    def cache_window(self) -> int | None:
        """How many keys back a query looks, itself included; None: all."""
        return None

    def stream_shapes(self) -> list[tuple[int, int]]:
        """(heads, width) of each of the `features`."""
        return []

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """What else must be known of every key, each (b, heads, s, width): cached, handed to `mix` as view.streams."""
        return ()

    def hold(
        self, x: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """What becomes of new keys and values before they are attended to and cached."""
        return k, v

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        """What each head makes of queries (b, h, s, c), keys and values (b, kv_heads, s_k, c): (b, h, s, c)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        self._check_inputs(x, context, key_mask, positions, cache)
        if context is not None:
            q, k, v = self._project_context(x, blank_padding(context, key_mask), cache)
            view = View(x.shape[1], k.shape[2], False, key_mask, context=True)
        else:
            x = blank_padding(x, key_mask)
            if cache is not None:
                positions = self._next_positions(x, positions, cache)
            q, k, v = self._project(x, positions)
            k, v = self.hold(x, k, v, key_mask, cache)
            at = positions if self.axes == 1 else None
            view = View(x.shape[1], x.shape[1], self.causal, key_mask, at, at, False, self.features(x))
            if cache is not None:
                k, v = self._remember(k, v, view, cache)
        mixed = self.mix(x, q, k, v, view)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys rotated, values: each (b, its heads, s, c)."""
        batch, length, _ = x.shape
        weight, bias, rotary = self.qkv.weight, self.qkv.bias, self.rotary
        mixing = None if rotary is None else rotary.mixing()  # type: ignore[operator]
        turned = self.heads + self.kv_heads
        # A compiled graph always folds: a branch on the number of tokens would cost it one graph more.
        if mixing is not None and (torch.compiler.is_compiling() or worth_folding(batch * length, self.dims, turned)):
            weight, bias = self._folded(mixing)
            mixing = None
        projected = F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))
        qk, v = projected.split((turned, self.kv_heads), dim=2)
        qk = right_multiply(qk, mixing)
        if self.qk_norm:
            qk = rms_norm(qk)
        qk = self.turn(qk.transpose(1, 2), positions)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        return q, k, v.transpose(1, 2)

    def turn(self, qk: Tensor, positions: Tensor | None) -> Tensor:
        """Queries and keys (b, heads + kv_heads, s, c), R already applied, turned by their positions."""
        if self.rotary is None:
            return qk
        if getattr(self.rotary, "is_relative", True):
            return self.rotary.apply_positions(qk, positions)  # type: ignore[operator]
        # Keys turned as queries are would give scores that depend on where they stand.
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        return torch.cat([self.rotary.apply_positions(q, positions), self.rotary.apply_key_positions(k, positions)], 1)  # type: ignore[operator]

    def merge(self) -> None:
        """Multiply the rotary's R into the projections for good: inference then costs what plain RoPE costs."""
        if self.rotary is None or self.rotary.mixing() is None:  # type: ignore[operator]
            return
        bias = None if self.qkv.bias is None else self.qkv.bias[: self._turned]
        self.rotary.merge((self.qkv.weight[: self._turned], bias))  # type: ignore[operator]

    def _folded(self, mixing: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fused weight and bias with R multiplied into the rows of queries and keys."""
        rows = (self._turned, self.qkv.weight.shape[0] - self._turned)
        qk, v = self.qkv.weight.split(rows)
        qk_bias, v_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(rows)
        qk, qk_bias = fold(qk, qk_bias, mixing, self.heads + self.kv_heads)
        bias = None if qk_bias is None or v_bias is None else torch.cat([qk_bias, v_bias])
        return torch.cat([qk, v]), bias

    def _project_context(self, x: Tensor, context: Tensor, cache: Any) -> tuple[Tensor, Tensor, Tensor]:
        cut = self.heads * self.head_dim
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x, weight[:cut], None if bias is None else bias[:cut])
        q = q.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q = rms_norm(q) if self.qk_norm else q
        if cache is not None and cache.context is context:
            return q, cache.keys, cache.values
        kv = F.linear(context, weight[cut:], None if bias is None else bias[cut:])
        k, v = kv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).chunk(2, dim=1)
        k = rms_norm(k) if self.qk_norm else k
        if cache is not None:
            cache.context, cache.keys, cache.values = context, k, v
        return q, k, v

    def _next_positions(self, x: Tensor, positions: Tensor | None, cache: LayerCache) -> Tensor | None:
        if cache.window != self.cache_window():
            raise RuntimeError(
                f"the window is {self.cache_window()} and the cache was made for {cache.window}: make a new cache"
            )
        if self.rotary is not None:
            cache.check_version(self.rotary.base_version)  # type: ignore[arg-type]
        if positions is None and self.axes == 1:
            return cache.next_positions(x.shape[1], x.device)
        return positions

    def _remember(self, k: Tensor, v: Tensor, view: View, cache: LayerCache) -> tuple[Tensor, Tensor]:
        k, v, *streams, key_positions = cache.update(
            k, v, *view.streams, positions=view.query_positions, key_mask=view.key_mask
        )
        view.streams, view.key_positions = tuple(streams), key_positions
        view.keys, view.key_mask = k.shape[2], cache.valid
        return k, v
