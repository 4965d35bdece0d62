"""What every attention shares: the interface, the checks, the projections, the rotary and the cache.

A variant overrides `attend`, which gets queries, keys and values of all heads and says what comes out of each head.
Choices made here:

- One fused projection for queries, keys and values. A rotary's position-independent factor R is multiplied into its
  weight ("folding") wherever there are clearly more tokens than dims; then only the rotation by positions touches
  activations, once for queries and keys together.
- The order is x W → R → optional RMS norm of each head → rotation by positions, so that folding is exact for every R.
  Where R is orthogonal this equals norming first.
- A gain-free qk-norm, because a gain would stand between R and the rotation for nothing: scores only see one
  temperature.
- Padded inputs are zeroed before anything else, so neither values nor NaN in padding can reach a weight's gradient.
- Cross-attention (a `context`) is never causal, and rotated with `rotate_context` alone.

Shapes: b batch, s tokens, d = dims, h heads, c = d / h, g key-value heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.checks import check_fraction
from cubelet.models.cache import ContextCache, LayerCache
from cubelet.models.kernels.rms_norm import rms_norm
from cubelet.models.kernels.rotate_pairs import rotate_real
from cubelet.models.kernels.routing import take_rows
from cubelet.models.linear import Linear
from cubelet.models.rotary import Rotary
from cubelet.models.rotary.rotation_matrix import fold, right_multiply, worth_folding

from .checks import check_cached_keys, check_heads, check_mask, check_positions, check_rows, check_scalable, rotary_axes
from .masking import AttentionScope
from .projections import project_context, project_rows


def check_input(
    x: Tensor, dims: int, key_mask: Tensor | None = None, documents: Tensor | None = None, cache: Any = None
) -> None:
    """Refuse x other than (b, s, dims), and a mask or document numbers that do not fit it; with the numbers."""
    if x.ndim != 3 or x.shape[-1] != dims:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, tokens, dims {dims})")
    if key_mask is not None:
        past = 0 if cache is None else cache.length
        check_mask("key_mask", key_mask, x.shape[0], (x.shape[1], past + x.shape[1]))
    if documents is not None:
        check_rows("documents", documents, x.shape[0], (x.shape[1],))
        if documents.is_floating_point() or documents.dtype == torch.bool:
            raise TypeError(f"documents have dtype {documents.dtype}; give integers, one number a document")


def zero_padding(x: Tensor, key_mask: Tensor | None) -> Tensor:
    """x (b, s, d) with padded rows zeroed; a mask over more than s keys says about x in its last s columns."""
    if key_mask is None:
        return x
    own = key_mask[:, key_mask.shape[1] - x.shape[1] :]
    return x.masked_fill(~own[..., None], 0.0)


class Attention(nn.Module):
    """Interface of all attentions; see `forward`.

    Class attributes say what a variant can do: `accepts_context` (cross-attention), `accepts_noncausal`,
    `is_local` (cost and cache bounded by a window), `accepts_rows` (queries of some rows alone, see `forward`).

    Args:
        dims: model width d.
        heads: number of heads; divides dims.
        causal: whether a token sees only itself and earlier ones.
        dropout: probability, on the attention weights.

    Raises:
        ValueError: sizes that do not fit, or what the variant cannot do.

    Example:
        >>> Attention(8, 2).head_dim
        4
        >>> Attention(8, 3)
        Traceback (most recent call last):
        ValueError: dims 8 cannot be split over heads 3: dims must be a positive multiple of heads
    """

    accepts_context: ClassVar[bool] = True
    accepts_noncausal: ClassVar[bool] = True
    is_local: ClassVar[bool] = False
    accepts_rows: ClassVar[bool] = False

    def __init__(self, dims: int, heads: int, *, causal: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        check_fraction("dropout", dropout)
        self.head_dim = check_heads(dims, heads)
        self.dims, self.heads, self.causal, self.dropout = dims, heads, causal, dropout
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
        documents: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (b, s, dims).
            context: (b, s_k, dims) to attend to instead of x (cross-attention: not causal).
            key_mask: bool, True = may be attended: (b, s_k) for a context, (b, s) without; with a cache (b, s) for the
                new tokens, or (b, cache.length + s) for all.
            positions: (s,) or (b, s) integers for rotations and distances; default: counted from 0, or on from the
                cache. Who comes before whom is decided by the order of rows, not by positions. For a rotary of n > 1
                axes (s, n) or (b, s, n), always to be given; distances then count rows.
            documents: (b, s) integers, for rows that hold several documents one after the other: tokens see those of
                their own number only. Positions are the caller's (see `document_positions`).
            cache: from `new_cache`; the rows of x are appended to it.

        Returns:
            (b, s, dims). Rows that may attend nothing are zeros (plus the output's bias, if there is one).

        Raises:
            ValueError, TypeError: shapes or types that do not fit, with the numbers.
            RuntimeError: the rotary's base changed while keys are cached.
        """
        raise NotImplementedError

    def new_cache(self, batch_size: int, max_length: int) -> Any:
        """An empty cache for `forward(..., cache=)`, on the device and in the dtype of the parameters.

        Raises:
            NotImplementedError: the variant cannot decode step by step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no cache: write new_cache, or decode without one")

    def new_context_cache(self) -> ContextCache:
        """A cache for cross-attention: keys and values are projected once per context tensor."""
        self._check_accepts_context()
        return ContextCache()

    def penalty(self) -> Tensor:
        """Sum of the penalties that depend on parameters alone, the rotary's included: 0-dim. Here none: 0."""
        return next(self.parameters()).new_zeros(())

    def zero_output(self) -> None:
        """Zero the output projection, so that a residual block starts as the identity. Here: a linear layer `out`."""
        out = getattr(self, "out", None)
        if isinstance(out, nn.Linear):
            nn.init.zeros_(out.weight)

    def _check_accepts_context(self) -> None:
        if not self.accepts_context:
            raise ValueError(
                f"{type(self).__name__} is self-attention only: its rule about which key is near or accepted has no "
                "meaning for a context; use MultiHeadAttention for cross-attention"
            )

    def _check_context(self, x: Tensor, context: Tensor, key_mask: Tensor | None, documents: Tensor | None) -> None:
        check_input(x, self.dims)
        self._check_accepts_context()
        if documents is not None:
            raise ValueError("documents have no meaning for a context: every token attends to all of it")
        if context.ndim != 3 or context.shape[0] != x.shape[0] or context.shape[-1] != self.dims:
            raise ValueError(
                f"context has shape {tuple(context.shape)}; expected (batch {x.shape[0]}, keys, dims {self.dims})"
            )
        if key_mask is not None:
            check_mask("key_mask", key_mask, x.shape[0], (context.shape[1],))


class ProjectedAttention(Attention):
    """Attention with its own fused projections; variants override `attend`, some also the hooks above it.

    A subclass that only mixes the heads in another way is `attend` and nothing else. One with parameters of its own
    builds them in its constructor after `super().__init__(dims, heads, **options)`, and sets them again in
    `reset_parameters` after `super().reset_parameters()`, which no constructor calls.

    Args:
        dims, heads: width of the model, number of query heads.
        rotary: rotates queries and keys of self-attention.
        causal: whether a token sees only itself and earlier ones.
        dropout: on attention weights.
        kv_heads: heads of keys and values (grouped-query attention, https://arxiv.org/abs/2305.13245); divides heads.
        qk_norm: RMS-normalise queries and keys per head.
        bias: biases in the projections.
        positional_scaling: learn a factor of the positions that the rotary sees, 1 at the start.
        rotate_context: rotate queries and the keys of a context, too, by the rows of each; otherwise the rotary serves
            self-attention alone.

    Example:
        >>> class UniformAttention(ProjectedAttention):
        ...     def attend(self, x, q, k, v, scope):
        ...         return masked_attention(0 * q, k, v, scope)
        >>> from cubelet.models.attention.masking import masked_attention
        >>> UniformAttention(32, 4)(torch.zeros(2, 5, 32)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        rotary: Rotary | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        bias: bool = False,
        positional_scaling: bool = False,
        rotate_context: bool = False,
    ) -> None:
        super().__init__(dims, heads, causal=causal, dropout=dropout)
        check_heads(dims, heads, kv_heads)
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.qk_norm, self.rotate_context = qk_norm, rotate_context
        self.rotary = rotary
        self.axes = rotary_axes(rotary, self.head_dim)
        if positional_scaling:
            check_scalable(rotary)
        self.qkv = Linear(dims, (heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out = Linear(dims, dims, bias=bias)
        self.position_scale = nn.Parameter(torch.ones(())) if positional_scaling else None

    def reset_parameters(self) -> None:
        """Draw the projections again: normal weights of deviation dims^−½, zero biases."""
        self.qkv.reset_parameters()
        self.out.reset_parameters()
        if self.position_scale is not None:
            nn.init.ones_(self.position_scale)

    def penalty(self) -> Tensor:
        return self.out.weight.new_zeros(()) if self.rotary is None else self.rotary.penalty()

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        return LayerCache(
            batch_size,
            max_length,
            [(self.kv_heads, self.head_dim)] * 2 + self.extra_stream_shapes(),
            window=self.cache_window(),
            device=self.qkv.weight.device,
            dtype=self.qkv.weight.dtype,
        )

    def cache_window(self) -> int | None:
        """How many keys back a query looks, itself included; None: all."""
        return None

    def extra_stream_shapes(self) -> list[tuple[int, int]]:
        """(heads, width) of each of the `extra_streams`."""
        return []

    def extra_streams(self, x: Tensor) -> tuple[Tensor, ...]:
        """What else must be known of every key, each (b, heads, s, width): cached, and `scope.streams` of `attend`."""
        return ()

    def update_kv(
        self, x: Tensor, k: Tensor, v: Tensor, scope: AttentionScope, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """What becomes of new keys and values (b, g, s, c) before they are attended to and cached.

        `scope` describes the new rows alone.
        """
        return k, v

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        """What each head makes of queries (b, h, s, c), keys and values (b, g, s_k, c): (b, h, s, c)."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """As `Attention.forward`, and, where `accepts_rows`:

        Args:
            rows: (b, r) int64, the only rows of x that ask; keys and values are those of all. Returns (b, r, dims).
        """
        if positions is not None:
            check_positions(positions, x.shape[0], x.shape[1], self.axes)
        if context is not None:
            self._check_context(x, context, key_mask, documents)
            q, k, v = project_context(self, x, context, key_mask, positions, cache)
            scope = AttentionScope(x.shape[1], k.shape[2], False, key_mask, is_context=True)
        else:
            check_input(x, self.dims, key_mask, documents, cache)
            if key_mask is not None:
                x = zero_padding(x, key_mask)
            if cache is not None:
                positions = self._next_positions(x, positions, cache)
            q, k, v = self.project(x, positions, rows)  # (b, h, s or r, c), (b, g, s, c), (b, g, s, c)
            at = positions if self.axes == 1 else None
            scope = AttentionScope(x.shape[1], x.shape[1], self.causal, key_mask, at, at, documents, documents)
            k, v = self.update_kv(x, k, v, scope, cache)
            scope.streams = self.extra_streams(x)
            if cache is not None:
                k, v = self._remember(k, v, scope, cache)  # (b, g, s_k, c)
            if rows is not None:
                x = take_rows(x, rows)  # (b, r, d)
                if not rows.shape[1]:
                    return x
                scope.ask_from(rows)
        heads = self.attend(x, q, k, v, scope)  # (b, h, s, c)
        return self.out(heads.transpose(1, 2).flatten(2))  # (b, s, d)

    def project(self, x: Tensor, positions: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of all or of some rows) and keys rotated, and values: each (b, its heads, s, c)."""
        weight, bias, turned = self.qkv.weight, self.qkv.bias, self.heads + self.kv_heads
        R = None if self.rotary is None else self.rotary.mixing()
        if R is not None and worth_folding(x.shape[0] * x.shape[1], self.dims, turned):
            weight, bias = self._folded(R)
            R = None
        if rows is not None:
            return project_rows(self, x, positions, rows, weight, bias, R)
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))  # (b, s, h + 2 g, c)
        qk, v = heads.split((turned, self.kv_heads), dim=2)
        if R is not None:
            qk = right_multiply(qk, R)
        if self.qk_norm:
            qk = rms_norm(qk)
        qk, v = qk.transpose(1, 2), v.transpose(1, 2)  # (b, h + g, s, c), (b, g, s, c)
        if self.rotary is None or self.rotary.is_relative:
            qk = qk if self.rotary is None else self.rotary.apply_positions(qk, positions)
            qk = qk if self.position_scale is None else self.rotate_on(qk, positions, self.position_scale)
            q, k = qk.split((self.heads, self.kv_heads), dim=1)
        else:  # keys rotated as queries are would give scores that depend on where they stand
            q, k = qk.split((self.heads, self.kv_heads), dim=1)
            q, k = self.rotary.apply_positions(q, positions), self.rotary.apply_key_positions(k, positions)
        return q, k, v

    def rotate_on(self, qk: Tensor, positions: Tensor | None, scale: Tensor) -> Tensor:
        """Behind the rotation by p one by (scale − 1)·p in the same planes: together by scale·p.

        Positions stay integers for the rotary, so its tables can be kept, and the gradient of the scale is exact.
        """
        assert self.rotary is not None
        if positions is None:
            positions = torch.arange(qk.shape[2], device=qk.device)
        frequencies = self.rotary.frequencies()
        rest = positions[..., None] * ((scale.to(frequencies.dtype) - 1) * frequencies)  # (…, s, c / 2)
        rest = rest if rest.ndim == 2 else rest[:, None]
        wide = torch.promote_types(qk.dtype, torch.float32)
        return rotate_real(qk, rest.cos().to(wide), rest.sin().to(wide))

    def merge(self) -> None:
        """Multiply the rotary's R into the projections for good: inference then costs what plain RoPE costs."""
        if self.rotary is None or self.rotary.mixing() is None:
            return
        turned = (self.heads + self.kv_heads) * self.head_dim
        self.rotary.merge((self.qkv.weight[:turned], None if self.qkv.bias is None else self.qkv.bias[:turned]))

    def _folded(self, R: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fused weight and bias with R multiplied into the rows of queries and keys."""
        rows = ((self.heads + self.kv_heads) * self.head_dim, self.kv_heads * self.head_dim)
        qk, v = self.qkv.weight.split(rows)
        qk_bias, v_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(rows)
        qk, qk_bias = fold(qk, qk_bias, R, self.heads + self.kv_heads)
        bias = None if qk_bias is None or v_bias is None else torch.cat([qk_bias, v_bias])
        return torch.cat([qk, v]), bias

    def _next_positions(self, x: Tensor, positions: Tensor | None, cache: LayerCache) -> Tensor | None:
        if cache.window != self.cache_window():
            raise RuntimeError(
                f"the window is {self.cache_window()} and the cache was made for {cache.window}: make a new cache"
            )
        if self.rotary is not None:
            check_cached_keys(self.rotary, cache, x.shape[1])
        if positions is None and self.axes == 1:
            return cache.next_positions(x.shape[1], x.device)
        return positions

    def _remember(self, k: Tensor, v: Tensor, scope: AttentionScope, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Append the new rows to the cache; `scope` then describes all that it holds."""
        k, v, *streams, key_positions = cache.update(
            k,
            v,
            *scope.streams,
            positions=scope.query_positions,
            key_mask=scope.key_mask,
            documents=scope.query_documents,
        )
        scope.streams, scope.keys = tuple(streams), k.shape[2]
        scope.key_positions, scope.key_mask, scope.key_documents = key_positions, cache.valid, cache.documents
        if scope.key_documents is not None:
            scope.query_documents = scope.key_documents[:, scope.keys - scope.queries :]
        return k, v
