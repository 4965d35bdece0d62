"""Hard decisions with a gradient: straight-through gates and choices (https://arxiv.org/abs/1308.3432)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_gate(p: Tensor) -> Tensor:
    """1 where p > ½, else 0; the gradient is that of p."""
    hard = (p > 0.5).to(p.dtype)
    return hard + (p - p.detach()) if p.requires_grad else hard


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, used: Tensor, soft: Tensor) -> Tensor:
        change = y - x
        ctx.save_for_backward(change, used, soft)
        return x + used * change

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        change, used, soft = ctx.saved_tensors
        # Below 1e-6 nothing is learnt, and products of such numbers are denormal: a step then takes twice as long.
        to_y = torch.maximum(used, soft * (soft > 1e-6)) * grad
        return grad - to_y, to_y, (grad * change).sum(-1, keepdim=True), None


def gated_update(x: Tensor, y: Tensor, used: Tensor, soft: Tensor) -> Tensor:
    """x + used · (y − x), with a gradient to y through closed gates, too: times `soft` where used is 0.

    Without it a gate that starts closed in front of a branch that starts at zero would never learn: the gate's gradient
    is a multiple of the branch, and the branch's a multiple of the gate.

    Args:
        x, y: (b, s, d).
        used: (b, s, 1), 0 or 1, its own gradient straight-through.
        soft: (b, s, 1), probability that it is used.
    """
    return _GatedAdd.apply(x, y, used, soft)


def hard_choice(logits: Tensor, noisy: bool) -> Tensor:
    """One-hot of the largest logit over the last axis, with Gumbel noise where `noisy` (https://arxiv.org/abs/1611.01144).

    The gradient is that of the softmax of the same (noisy) logits.
    """
    if noisy:
        logits = logits - torch.empty_like(logits).exponential_().clamp_min(1e-20).log()
    hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    if not logits.requires_grad:
        return hard
    soft = logits.softmax(-1)
    return hard + (soft - soft.detach())


def mean_over_tokens(values: Tensor, key_mask: Tensor | None) -> Tensor:
    """Mean of values (b, s) over tokens that are no padding, 0-dim; of key_mask (b, n ≥ s) the last s columns."""
    if key_mask is None:
        return values.mean()
    own = key_mask[:, key_mask.shape[1] - values.shape[1] :].to(values.dtype)
    return (values * own).sum() / own.sum().clamp(min=1.0)


def budget_penalty(share: Tensor, budget: float, weight: float) -> Tensor:
    """weight · max(share − budget, 0)²: 0 below the budget."""
    return weight * F.relu(share - budget).square()
