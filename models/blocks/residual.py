"""The plain pre-norm transformer block (Xiong et al. 2020, https://arxiv.org/abs/2002.04745).

x + attention(norm(x)), then optionally + attention(norm(x), context), then + mlp(norm(x)). All output projections start
at zero: the stack starts as the identity and needs no depth-dependent initialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cubelet.common.contracts import check_contract
from cubelet.models.attention import Attention, MultiHeadAttention
from cubelet.models.attention.base import check_input, zero_padding
from cubelet.models.cache import CacheGroup
from cubelet.models.kernels.routing import take_rows
from cubelet.models.rotary import Rotary

from .mlp import MLP, make_norm

# What a block calls on its attention, besides calling it.
ATTENTION_NEEDS = {
    "zero_output": "() sets the last projection to zero, so that a block starts as the identity",
    "new_cache": "(batch_size, max_length) → cache of keys and values",
    "penalty": "() → 0-dim tensor",
}


class ResidualBlock(nn.Module):
    """One layer of a decoder, or, with `causal=False`, of an encoder.

    Args:
        dims, heads: width and number of heads, handed on to the components.
        attention: called as attention(dims, heads, rotary=…, causal=…, dropout=…), a class or a partial of one.
        rotary: called as rotary(dims, heads), or None for no rotation.
        cross_attention: also attend to a context; always a `MultiHeadAttention`.
        cross_rotary: called as cross_rotary(dims, heads): rotates the queries and keys of cross-attention by their
            places, each from 0; None: what the encoder wrote into the context is all that tells its order.
        norm: "rms" (no gain) or "layer".
        activation: of the MLP: "relu2", "relu", "gelu", "silu" or "swiglu".
        dropout: on attention weights and on what each part adds.
        mlp_ratio: hidden width of the MLP over dims.
        causal: whether a token sees only itself and earlier ones.

    Example:
        >>> import torch
        >>> x, cost = ResidualBlock(32, 4, activation="gelu")(torch.randn(2, 5, 32))
        >>> x.shape, cost
        (torch.Size([2, 5, 32]), None)
    """

    accepts_rows = True

    def __init__(
        self,
        dims: int,
        heads: int,
        *,
        attention: Callable[[int, int], Attention] = MultiHeadAttention,
        rotary: Callable[[int, int], Rotary] | None = None,
        cross_attention: bool = False,
        cross_rotary: Callable[[int, int], Rotary] | None = None,
        norm: str = "rms",
        activation: str = "relu2",
        dropout: float = 0.0,
        mlp_ratio: float = 4,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.dims, self.dropout = dims, dropout
        own = None if rotary is None else rotary(dims, heads)
        self.attention_norm = make_norm(norm, dims)
        # Typed by what a configuration has to give (dims and heads come from here); called with more.
        make: Callable[..., Attention] = attention
        self.attention = make(dims, heads, rotary=own, causal=causal, dropout=dropout)
        check_contract("attention", self.attention, ATTENTION_NEEDS, "cubelet.models.attention.ProjectedAttention")
        self.attention.zero_output()
        self.cross_norm = make_norm(norm, dims) if cross_attention else None
        self.cross_attention = None
        if cross_attention:
            theirs = None if cross_rotary is None else cross_rotary(dims, heads)
            self.cross_attention = MultiHeadAttention(
                dims, heads, causal=False, dropout=dropout, rotary=theirs, rotate_context=theirs is not None
            )
        if self.cross_attention is not None:
            self.cross_attention.zero_output()
        self.mlp_norm = make_norm(norm, dims)
        self.mlp = MLP(dims, ratio=mlp_ratio, activation=activation, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer.

        Args:
            x: (b, s, dims). context: (b, s_c, dims), required exactly where the block has cross-attention.
            key_mask: (b, s) bool, True = a token, False = padding; with a cache as in `Attention.forward`.
            context_mask: (b, s_c) bool for the context.
            positions, documents, cache: as in `Attention.forward`; the cache from this block's `new_cache`.
            rows: (b, r) int64, the only rows of x to compute (where `accepts_rows`); other rows give keys and values.

        Returns:
            x (b, s, dims), or (b, r, dims) of `rows`; and the block's loss terms that depend on activations (0-dim),
            here None.

        Raises:
            ValueError: a context without cross-attention, or the reverse; shapes that do not fit.
        """
        if (context is None) != (self.cross_attention is None):
            raise ValueError(
                "this block has no cross-attention: build it with cross_attention=True to give it a context"
                if self.cross_attention is None
                else "this block has cross-attention and needs a context (b, s_c, dims)"
            )
        if context_mask is not None and context is None:
            raise ValueError("context_mask was given without a context")
        own, cross = (None, None) if cache is None else self.split_cache(cache)
        at = positions
        if self.cross_attention is not None and self.cross_attention.rotate_context and own is not None and at is None:
            at = torch.arange(own.length, own.length + x.shape[1], device=x.device)
        check_input(x, self.dims, key_mask, documents, own)
        if key_mask is not None:  # or NaN in padding would reach the weights' gradients through the MLP
            x = zero_padding(x, key_mask)
        options: dict[str, Any] = {"key_mask": key_mask, "positions": positions, "cache": own}
        if documents is not None:
            options["documents"] = documents
        h = self.attention_input(x, key_mask, documents, cache)
        if rows is None:
            x = x + self._drop(self.attention(h, **options))
        else:
            x = take_rows(x, rows) + self._attend_rows(h, rows, options)  # (b, r, d)
            if not rows.shape[1]:
                return x, None
            if at is None:
                at = rows
            else:
                at = take_rows(at.expand(rows.shape[0], -1) if at.ndim == 1 else at, rows)
        if self.cross_attention is not None and self.cross_norm is not None:
            places = {"positions": at} if self.cross_attention.rotate_context else {}
            h = self.cross_norm(x)
            x = x + self._drop(self.cross_attention(h, context, key_mask=context_mask, cache=cross, **places))
        return x + self.mlp(self.mlp_input(x, key_mask, documents, cache)), None

    def _attend_rows(self, h: Tensor, rows: Tensor, options: dict[str, Any]) -> Tensor:
        if self.attention.accepts_rows:
            return self._drop(self.attention(h, rows=rows, **options))
        return self._drop(take_rows(self.attention(h, **options), rows))

    def attention_input(self, x: Tensor, key_mask: Tensor | None, documents: Tensor | None, cache: Any) -> Tensor:
        """What attention reads, (b, s, dims); subclasses put more between the stream and attention here."""
        return self.attention_norm(x)

    def mlp_input(self, x: Tensor, key_mask: Tensor | None, documents: Tensor | None, cache: Any) -> Tensor:
        """What the MLP reads, (b, s, dims)."""
        return self.mlp_norm(x)

    def split_cache(self, cache: Any) -> tuple[Any, Any]:
        """The caches of self-attention and of cross-attention, each or both None."""
        return (cache, None) if cache is None or self.cross_attention is None else cache.parts

    def new_cache(self, batch_size: int, max_length: int) -> Any:
        """An empty cache for this block; see `Attention.new_cache`."""
        own = self.attention.new_cache(batch_size, max_length)
        return own if self.cross_attention is None else CacheGroup(own, self.cross_attention.new_context_cache())

    def penalty(self) -> Tensor:
        """Penalties of attention and rotary that depend on parameters alone: 0-dim."""
        return self.attention.penalty()

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
