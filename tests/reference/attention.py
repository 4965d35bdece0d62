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


def mix_rows(module, q, k, v, key_mask: Tensor | None, allowed, extra=None, scale=None) -> Tensor:
    """Attention by its definition: `allowed(i, j)` says who sees whom, `extra(b, h, i, j)` is added to the score."""
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
                nobody = bool((scores == -torch.inf).all())
                rows.append(out[b, h, i] if nobody else F.softmax(scores, 0) @ v[b, h, keys])
    return torch.stack(rows).view_as(q)


def softmax_rows(module, x: Tensor, key_mask: Tensor | None, allowed, extra=None, scale=None) -> Tensor:
    """`mix_rows` of the module's projections, through its output projection."""
    mixed = mix_rows(module, *heads_of(module, x), key_mask, allowed, extra, scale)
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

    def extra(b, h, i, j):
        return module.relative_bias[h, i - j]

    return softmax_rows(module, x, key_mask, allowed, None if module.relative_bias is None else extra)


def hybrid(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    near, far = local(module.local, x, key_mask), multi_head(module.far, x, key_mask)
    if module.out is None:
        return near + far
    return torch.cat([near, far], -1) @ module.out.weight.T


def adaptive_span(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    share = module.span_scale.clamp(0, 1) * module.span
    z = [share[h] * module.max_spans[h] for h in range(module.heads)]

    def m(h, distance):
        return ((module.ramp + z[h] - distance) / module.ramp).clamp(0, 1)

    def extra(b, h, i, j):
        return m(h, abs(i - j)).log()

    def scale(h):
        return 1 / (1 - module.temperature_slope * share[h])

    # A head's span may end before another's: keys with m = 0 have score −inf and weight 0.
    return softmax_rows(module, x, key_mask, lambda i, j: j <= i or not module.causal, extra, scale)


def multi_scale(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    share = module.span_scale.clamp(0, 1) * module.span

    def extra(b, h, i, j):
        window = module.windows[h // module.group]
        if abs(i - j) >= window + (not module.causal):
            return torch.full_like(share[h], -torch.inf)
        z = share[h] * module.max_spans[h]
        return ((module.ramp + z - abs(i - j)) / module.ramp).clamp(0, 1).log()

    return softmax_rows(module, x, key_mask, lambda i, j: j <= i or not module.causal, extra)


def content_gated(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    q, k, v = heads_of(module, x)
    soft = torch.sigmoid(module.gate(x)).squeeze(-1)
    held = []
    for rows in (k, v):
        batches = []
        for b in range(x.shape[0]):
            last, sequence = None, []
            for t in range(x.shape[1]):
                if not valid(key_mask, b, t):
                    pass
                elif last is None:
                    # The first token is taken whatever its gate says; its gate still feels the step from nothing.
                    last = rows[b, :, t] * (1 + soft[b, t] - soft[b, t].detach())
                else:
                    u = (soft[b, t] > 0.5).to(soft.dtype) + soft[b, t] - soft[b, t].detach()
                    last = u * rows[b, :, t] + (1 - u) * last
                sequence.append(torch.zeros_like(rows[b, :, t]) if last is None else last)
            batches.append(torch.stack(sequence, dim=1))
        held.append(torch.stack(batches))
    mixed = mix_rows(module, q, *held, key_mask, lambda i, j: j <= i or not module.causal)
    return module.out(mixed.transpose(1, 2).flatten(2))


def dynamic_conv(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    q, k, v = heads_of(module, x)
    far = mix_rows(module, q, k, v, key_mask, lambda i, j: j <= i or not module.causal)
    kernels = module.kernel(x).unflatten(-1, (module.heads, module.taps)).softmax(-1)
    shift = 0 if module.causal else module.taps // 2
    near = []
    for b in range(x.shape[0]):
        for h in range(module.heads):
            for t in range(x.shape[1]):
                y = torch.zeros_like(v[b, h, t])
                for n in range(module.taps):
                    j = t + shift - n
                    if 0 <= j < x.shape[1] and valid(key_mask, b, j):
                        y = y + kernels[b, t, h, n] * v[b, h, j]
                near.append(y)
    share = torch.sigmoid(module.share)[:, None, None]
    mixed = (1 - share) * far + share * torch.stack(near).view_as(far)
    return module.out(mixed.transpose(1, 2).flatten(2))


def forgetting(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Every log of a gate between key and query, added up one by one."""
    gates = torch.sigmoid(module.forget(x))  # (b, s, h)

    def extra(b, h, i, j):
        between = [gates[b, t, h].log() for t in range(j + 1, i + 1) if valid(key_mask, b, t)]
        return sum(between, torch.zeros_like(gates[0, 0, 0]))

    return softmax_rows(module, x, key_mask, lambda i, j: j <= i, extra)


def cope(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Every gate between key and query, added up one by one, and the vector between its two neighbours."""
    q, k, _ = heads_of(module, x)

    def extra(b, h, i, j):
        between = [t for t in range(j, i + 1) if valid(key_mask, b, t)]
        gates = torch.sigmoid(torch.stack([q[b, h, i] @ k[b, h, t] / math.sqrt(module.head_dim) for t in between]))
        position = gates.sum().clamp(max=len(module.vectors) - 1)
        below = int(position)
        above = min(below + 1, len(module.vectors) - 1)
        vector = module.vectors[below] + (position - below) * (module.vectors[above] - module.vectors[below])
        return q[b, h, i] @ vector

    return softmax_rows(module, x, key_mask, lambda i, j: j <= i, extra)


def relative_force(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """With every difference e_i − r_j spelled out, (s, s, d), and hops by summing over paths."""
    b, s, d = x.shape
    e, r = module.emitter(x), module.receiver(x)
    difference = e[:, :, None] - r[:, None, :]
    distance = difference.square().sum(-1).clamp_min(1e-12).sqrt()
    falloff = torch.exp(-distance / (module.log_length.exp() * math.sqrt(d))) / (distance + module.epsilon)
    force = torch.einsum("hd,bijd->bhij", module.masses, difference) * falloff[:, None]
    sees = [
        [[(j <= i or not module.causal) and valid(key_mask, n, j) for j in range(s)] for i in range(s)]
        for n in range(b)
    ]
    alpha, beta = module.alpha(e).squeeze(-1), module.beta(r).squeeze(-1)
    zero = torch.zeros_like(alpha[0, 0])
    edge = torch.stack(
        [
            torch.sigmoid(alpha[n, i] + beta[n, j]) / math.sqrt(max(1, sum(sees[n][i]))) if sees[n][i][j] else zero
            for n in range(b)
            for i in range(s)
            for j in range(s)
        ]
    ).view(b, s, s)
    two = torch.einsum("bij,bjk->bik", edge, edge)
    three = torch.einsum("bij,bjk,bkl->bil", edge, edge, edge)
    weights = module.hops.softmax(-1)
    paths = sum(weights[:, n].view(1, -1, 1, 1) * hop[:, None] for n, hop in enumerate((edge, two, three)))
    balance = torch.sigmoid(module.balance).view(1, -1, 1, 1)
    total = balance * force + (1 - balance) * paths
    if module.dot_product:
        q, k, v = heads_of(module, x)
    else:
        v = module.qkv(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        q = k = torch.zeros_like(v)
    mixed = mix_rows(module, q, k, v, key_mask, lambda i, j: sees[0][i][j] or sees[1][i][j], lambda *at: total[at])
    return module.out(mixed.transpose(1, 2).flatten(2))


def integrated(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    near = multi_scale(module.local, x, key_mask)
    for _ in range(module.passes - 1):
        near = multi_scale(module.local, x + near, key_mask)
    return torch.cat([near, content_gated(module.far, x, key_mask)], -1) @ module.out.weight.T


def gated_output(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    mixed = mix_rows(module, *heads_of(module, x), key_mask, lambda i, j: j <= i or not module.causal)
    gates = torch.sigmoid(x @ module.gate.weight.T)  # (b, s, d or h)
    per_head = gates.shape[-1] == module.heads
    rows = []
    for b in range(x.shape[0]):
        for h in range(module.heads):
            own = gates[b, :, h : h + 1] if per_head else gates[b].split(module.head_dim, dim=-1)[h]
            rows.append(mixed[b, h] * own)
    return module.out(torch.stack(rows).view_as(mixed).transpose(1, 2).flatten(2))


def sink(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """The sum over keys with one term more in the denominator."""
    q, k, v = heads_of(module, x)
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                total, y = module.sink[h].exp(), torch.zeros_like(v[b, h, i])
                for j in range(k.shape[2]):
                    if (j <= i or not module.causal) and valid(key_mask, b, j):
                        weight = (q[b, h, i] @ k[b, h, j] / math.sqrt(module.head_dim)).exp()
                        total, y = total + weight, y + weight * v[b, h, j]
                rows.append(y / total)
    return module.out(torch.stack(rows).view_as(q).transpose(1, 2).flatten(2))


def scalable_softmax(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Powers n^(s·score) of the number n of keys in sight, instead of those of e."""
    q, k, v = heads_of(module, x)
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if (j <= i or not module.causal) and valid(key_mask, b, j)]
                total, y = torch.zeros(()), torch.zeros_like(v[b, h, i])
                for j in seen:
                    score = module.sharpness[h] * (q[b, h, i] @ k[b, h, j]) / math.sqrt(module.head_dim)
                    weight = torch.tensor(float(len(seen))) ** score
                    total, y = total + weight, y + weight * v[b, h, j]
                rows.append(y / total if seen else y)
    return module.out(torch.stack(rows).view_as(q).transpose(1, 2).flatten(2))


def differential(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    q, k, v = heads_of(module, x)
    q1, k1, q2, k2 = module.lambdas
    factor = (q1 @ k1).exp() - (q2 @ k2).exp() + module.initial_lambda

    def allowed(i, j):
        return j <= i or not module.causal

    outs = []
    for pair in range(0, module.heads, 2):
        halves = []
        for half in (pair, pair + 1):  # first the values of the pair's first head, then those of its second
            first, second = (
                mix_rows(module, q[:, one : one + 1], k[:, one : one + 1], v[:, half : half + 1], key_mask, allowed)
                for one in (pair, pair + 1)
            )
            halves.append(first - factor * second)  # (b, 1, s, c)
        both = torch.cat(halves, dim=-1)
        both = both / (both.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        outs.append((1 - module.initial_lambda) * both[:, 0])  # (b, s, 2 c)
    return module.out(torch.cat(outs, dim=-1))


def latent(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Keys and values of every head written out; the rotated key is one for all heads."""
    h, c = module.heads, module.head_dim
    q, turned, k, rows = module.qkv(x).split([h * c, h * c, c, module.latent], dim=-1)
    q, turned, k = (t.unflatten(-1, (-1, c)).transpose(1, 2) for t in (q, turned, k))
    if module.rotary is not None:
        turned, k = module.rotary.rotate(turned), module.rotary.rotate(k)
    rows = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    content, v = (t.unflatten(-1, (-1, c)).transpose(1, 2) for t in module.up(rows).chunk(2, dim=-1))
    q, keys = torch.cat([q, turned], dim=-1), torch.cat([content, k.expand_as(content)], dim=-1)
    outs = []
    for b in range(x.shape[0]):
        for n in range(h):
            for i in range(x.shape[1]):
                seen = [j for j in range(x.shape[1]) if (j <= i or not module.causal) and valid(key_mask, b, j)]
                scores = torch.stack([q[b, n, i] @ keys[b, n, j] / math.sqrt(2 * c) for j in seen] or [q.new_zeros(())])
                outs.append(F.softmax(scores, 0) @ v[b, n, seen] if seen else torch.zeros_like(v[b, n, i]))
    return module.out(torch.stack(outs).view_as(v).transpose(1, 2).flatten(2))
