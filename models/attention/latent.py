"""Multi-head latent attention: keys and values of all heads from one short vector a token, which is all that is cached.

DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1. With ℓ_j = rms_norm(x_j W_ℓ) of `latent` numbers,

    score_ij = (q_i · ℓ_j U_k + q'_i · k'_j) / √(2c),  value_j = ℓ_j U_v,

q' and k' carry positions: rotated, k' one for all heads, since a rotation between ℓ and the query would keep U_k from
being multiplied into the query. Choices:

- Of many queries keys and values of all heads are written out, s · heads · 2c numbers; for fewer queries than keys
  (decoding) U_k is multiplied into the queries and U_v into what comes out, so a step reads the cached latents alone.
- Queries come straight from x; the paper's low rank for them saves memory in training only.
- The position's part is as wide as a head, so that every rotary fits.

Shapes: as in base.py; l = latent.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cubelet.common.checks import check_at_least
from cubelet.models.cache import LayerCache
from cubelet.models.kernels.rms_norm import rms_norm
from cubelet.models.linear import Linear
from cubelet.models.rotary.rotation_matrix import right_multiply

from .base import ProjectedAttention
from .masking import AttentionScope, masked_attention


class LatentAttention(ProjectedAttention):
    """Attention whose cache holds latent + head_dim numbers a token, whatever the number of heads.

    Args:
        latent: numbers that keys and values of a token are made of; default 2 · head_dim.
        options: see `ProjectedAttention`; without `kv_heads` and `qk_norm`, which latents stand for.

    Example:
        >>> attention = LatentAttention(32, 4, latent=12)
        >>> attention(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
        >>> [tuple(stream.shape) for stream in attention.new_cache(1, 100).streams]
        [(1, 1, 100, 8), (1, 1, 100, 12)]
    """

    accepts_context = False
    attend_linear = None  # latents are keys, too: what comes out is not linear in them

    def __init__(self, dims: int, heads: int, *, latent: int | None = None, **options: Any) -> None:
        super().__init__(dims, heads, **options)
        if self.kv_heads != heads or self.qk_norm:
            raise ValueError(
                f"kv_heads {self.kv_heads}, qk_norm {self.qk_norm}: keys of all heads come from one normed latent; "
                "leave both out"
            )
        self.latent = 2 * self.head_dim if latent is None else latent
        check_at_least("latent", self.latent, 1, "numbers that are cached for a token")
        bias = self.out.bias is not None
        # Rows: queries of all heads, what rotates of queries and of the one key, latents.
        self.qkv = Linear(dims, (2 * heads + 1) * self.head_dim + self.latent, bias=bias)
        self.up = Linear(self.latent, 2 * dims, bias=False)  # U_k and U_v of all heads

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.up.reset_parameters()

    def new_cache(self, batch_size: int, max_length: int) -> LayerCache:
        weight = self.qkv.weight
        shapes = [(1, self.head_dim), (1, self.latent)]
        return LayerCache(batch_size, max_length, shapes, device=weight.device, dtype=weight.dtype)

    def merge(self) -> None:
        if self.rotary is None or self.rotary.mixing() is None:
            return
        rows = slice(self.dims, 2 * self.dims + self.head_dim)
        self.rotary.merge((self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows]))

    def project(self, x: Tensor, positions: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b, h, s, 2c), the rotated key (b, 1, s, c) and the latents (b, 1, s, l)."""
        c, numbers = self.head_dim, self.qkv(x)  # (b, s, (2 h + 1) c + l)
        heads = numbers[..., : -self.latent].unflatten(-1, (-1, c)).transpose(1, 2)  # (b, 2 h + 1, s, c)
        q, rotated, k = heads.split((self.heads, self.heads, 1), dim=1)
        if self.rotary is not None:
            R = self.rotary.mixing()
            rotated = self.rotary.apply_positions(right_multiply(rotated, R), positions)
            k = self.rotary.apply_key_positions(right_multiply(k, R), positions)
        if self.position_scale is not None:
            rotated, k = (self.rotate_on(part, positions, self.position_scale) for part in (rotated, k))
        latents = rms_norm(numbers[..., -self.latent :])[:, None]  # (b, 1, s, l)
        return torch.cat([q, rotated], dim=-1), k, latents

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
        c, dropout = self.head_dim, self.dropout if self.training else 0.0
        up_k, up_v = self.up.weight.unflatten(0, (2, self.heads, c)).unbind(0)  # (h, c, l) each
        if scope.queries == scope.keys:
            keys, values = (v @ up.mT for up in (up_k, up_v))  # (b, h, s, c) each
            keys = torch.cat([keys, k.expand_as(keys)], dim=-1)  # (b, h, s, 2 c)
            return masked_attention(q, keys, F.pad(values, (0, c)), scope, dropout=dropout)[..., :c]
        scale = ((self.latent + c) / (2 * c)) ** 0.5  # the kernel divides by the root of the width it sees: l + c
        q = torch.cat([q[..., :c] @ up_k, q[..., c:]], dim=-1) * scale  # (b, h, s, l + c)
        keys, values = torch.cat([v, k], dim=-1), F.pad(v, (0, c))  # (b, 1, s_k, l + c)
        return masked_attention(q, keys, values, scope, dropout=dropout)[..., : self.latent] @ up_v.mT  # (b, h, s, c)
