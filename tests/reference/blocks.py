"""The blocks written slowly: tokens one by one, decisions as plain control flow (evaluation mode).

Each function takes the real module for its weights, x (b, s, d), and optionally key_mask (b, s).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference import attention

ACTIVATIONS = {
    "relu2": lambda x: F.relu(x) ** 2,
    "relu": F.relu,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x * torch.sigmoid(x),
}


def norm(module, x: Tensor) -> Tensor:
    if isinstance(module, torch.nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def mlp(module, x: Tensor) -> Tensor:
    hidden = x @ module.up.weight.T
    if module.activation == "swiglu":
        gate, value = hidden.split(hidden.shape[-1] // 2, dim=-1)
        hidden = ACTIVATIONS["silu"](gate) * value
    else:
        hidden = ACTIVATIONS[module.activation](hidden)
    return hidden @ module.down.weight.T


def blank(x: Tensor, key_mask: Tensor | None) -> Tensor:
    return x if key_mask is None else torch.where(key_mask[..., None], x, torch.zeros_like(x))


def residual(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    x = blank(x, key_mask)
    x = x + attention.multi_head(module.attention, norm(module.attention_norm, x), key_mask)
    return x + mlp(module.mlp, norm(module.mlp_norm, x))


def skipping(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    x = blank(x, key_mask)
    full = residual(module.block, x, key_mask)
    rows = []
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            p = torch.sigmoid(module.gate(x[b, t]))
            straight = p - p.detach()
            used = 1.0 if p > 0.5 else 0.0
            change = full[b, t] - x[b, t]
            # A closed gate lets the gradient to the block pass in proportion to its probability.
            passed = (max(used, float(p.detach())) - used) * (change - change.detach())
            rows.append(x[b, t] + (used + straight) * change + passed)
    return torch.stack(rows).view_as(x)


def myelinated(module, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Each token walks through the layers on its own: no masks of who is alive, an actual jump (values only)."""
    x = start = blank(x, key_mask)
    batch, length, _ = x.shape
    due = [[0] * length for _ in range(batch)]  # the next layer each token will use
    memory = torch.zeros_like(x)
    for index, layer in enumerate(module.layers):
        means = torch.zeros_like(x)
        for b in range(batch):
            for t in range(length):
                seen = [x[b, j] for j in range(t + 1) if attention.valid(key_mask, b, j)]
                means[b, t] = sum(seen) / len(seen) if seen else 0.0
        keep = torch.sigmoid(module.memory_gate[index - 1]) if index else 0.0
        memory = keep * memory + (1 - keep) * means
        full = residual(layer, x, key_mask)
        after = x.clone()
        for b in range(batch):
            for t in range(length):
                if due[b][t] != index:
                    continue
                decision = module.deciders[index](torch.cat([x[b, t], memory[b, t]]))
                if torch.sigmoid(decision[0]) > 0.5:
                    after[b, t] = full[b, t]
                jump = int(decision[1:].argmax()) if index < len(module.layers) - 1 else 0
                if jump:
                    after[b, t] = after[b, t] + module.impulse[jump - 1] * start[b, t]
                due[b][t] = index + 1 + jump
        x = after
    h = norm(module.closing_norm, x)
    return x + torch.sigmoid(module.closing_gate(h)) * mlp(module.closing, h)
