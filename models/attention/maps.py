"""Attention maps of any variant: which key each query of each head takes how much from.

What a head makes of values is linear in them, so `attend` with unit vectors instead of values returns the weights
themselves, head_dim keys a call: no variant has to say its weights in a second way, and fast paths are what is shown.
A variant that does more to what the weights gave (a norm, a gate) has `attend_linear`, the part before; one of which
no part is linear in its values sets that to None, and is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import ProjectedAttention
from .masking import AttentionScope


def attention_weights(
    attend: Callable[..., Tensor], x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope
) -> Tensor:
    """Return how much each query takes of each key's value: (b, h, queries, keys).

    Args:
        attend: linear in v; called with these arguments and unit vectors in place of v.
        x, q, k, v, scope: see `ProjectedAttention.attend`.
    """
    width, keys = v.shape[-1], v.shape[2]
    parts = []
    for start in range(0, keys, width):
        units = torch.zeros_like(v)
        count = min(width, keys - start)
        units[:, :, start + torch.arange(count), torch.arange(count)] = 1
        parts.append(attend(x, q, k, units, copy.copy(scope))[..., :count])  # (b, h, queries, count)
    return torch.cat(parts, dim=-1)


@torch.no_grad()
def attention_maps(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the weights of every `ProjectedAttention` in `model`, by name, as `run` uses them last.

    Args:
        model: in evaluation, since dropout would be drawn for every call.
        run: does the forward pass.

    Returns:
        {module name: (b, h, queries, keys)}; those that `run` does not call, or that have no weights, are left out.

    Example:
        >>> from cubelet.models.attention import MultiHeadAttention
        >>> attention = MultiHeadAttention(8, 2).eval()
        >>> maps = attention_maps(attention, lambda: attention(torch.randn(1, 3, 8)))
        >>> maps[""].sum(-1).allclose(torch.ones(1, 2, 3))
        True
    """
    maps: dict[str, Tensor] = {}
    watched = {name: module for name, module in model.named_modules() if isinstance(module, ProjectedAttention)}

    def watch(name: str, module: ProjectedAttention) -> None:
        usual = module.attend
        linear = getattr(module, "attend_linear", usual)
        if linear is None:
            return

        def attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: AttentionScope) -> Tensor:
            maps[name] = attention_weights(linear, x, q, k, v, scope)
            return usual(x, q, k, v, scope)

        vars(module)["attend"] = attend

    try:
        for name, module in watched.items():
            watch(name, module)
        run()
    finally:
        for module in watched.values():
            vars(module).pop("attend", None)
    return maps
