"""The attentions written slowly: loops over batch rows, heads, queries and keys, with the weights of a real module.

Every function takes the module (for its weights) and x (b, s, d), and optionally key_mask (b, s); positions count the
tokens that are not padding. Rotations use `rotary.rotate` on one head at a time, the definition and not the folding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def heads_of(module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of all query heads (b, h, s, c), rotated; keys and values repeated for grouped queries."""
    h, kv, c = module.heads, module.kv_heads, module.head_dim
    q, k, v = module.qkv(x).split([h * c, kv * c, kv * c], dim=-1)
    q, k, v = (t.unflatten(-1, (-1, c)).transpose(1, 2) for t in (q, k, v))
    if module.qk_norm:
        q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    if module.rotary is not None:
        q, k = module.rotary.rotate(q), module.rotary.rotate(k)
    return q, *(t.repeat_interleave(h // kv, dim=1) for t in (k, v))


def valid(key_mask: Tensor | None, batch: int, key: int) -> bool:
    return key_mask is None or bool(key_mask[batch, key])


def softmax_rows(module, x: Tensor, key_mask: Tensor | None, allowed, extra=None, scale=None) -> Tensor:
    """Attention by its definition: `allowed(i, j)` says who sees whom, `extra(b, h, i, j)` is added to the score."""
    q, k, v = heads_of(module, x)
    out = torch.zeros_like(q)
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if allowed(i, j) and valid(key_mask, b, j)]
                if not keys:
                    rows.append(out[b, h, i])
                    continue
                scores = torch.stack([q[b, h, i] @ k[b, h, j] / math.sqrt(module.head_dim) for j in keys])
                if scale is not None:
                    scores = scores * scale(h)
                if extra is not None:
                    scores = scores + torch.stack([extra(b, h, i, j) for j in keys])
                rows.append(F.softmax(scores, 0) @ v[b, h, keys])
    mixed = torch.stack(rows).view_as(q)
    return module.out(mixed.transpose(1, 2).flatten(2))


def multi_head(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    extra = None
    if module.relative_bias is not None:
        reach = module.relative_bias.max_distance - 1

        def extra(b, h, i, j):
            return module.relative_bias.table[max(-reach, min(reach, i - j)) + reach, h]

    return softmax_rows(module, x, key_mask, lambda i, j: j <= i or not module.causal, extra)


def local(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    def allowed(i, j):
        return i - module.window < j <= i if module.causal else abs(i - j) <= module.window

    return softmax_rows(module, x, key_mask, allowed)


def hybrid(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    near, far = local(module.local, x, key_mask), multi_head(module.far, x, key_mask)
    if module.join_layer is None:
        return near + far
    return torch.cat([near, far], -1) @ module.join_layer.weight.T


def adaptive_span(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    share = module.span_scale.clamp(0, 1) * module.span
    z = [share[h] * module.max_spans[h] for h in range(module.heads)]

    def m(h, distance):
        return ((module.ramp + z[h] - distance) / module.ramp).clamp(0, 1)

    def extra(b, h, i, j):
        return m(h, i - j).log()

    def scale(h):
        return 1 / (1 - module.temperature_slope * share[h])

    # A head's span may end before another's: keys with m = 0 have score −inf and weight 0.
    return softmax_rows(module, x, key_mask, lambda i, j: j <= i and i - j < module.reach, extra, scale)
