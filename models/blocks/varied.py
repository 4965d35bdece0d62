"""Blocks that differ from layer to layer: a seeded draw of heads, activation, norm and dropout.

The draw is a list of plain dictionaries, to be stored with the hyper-parameters: a model is rebuilt from the list, not
from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from cubelet.models.stack import repeat

from .mlp import ACTIVATIONS
from .residual import ResidualBlock


def divisors(dims: int) -> list[int]:
    """Head counts that divide dims into heads of even width."""
    return [heads for heads in range(1, dims // 2 + 1) if dims % heads == 0 and (dims // heads) % 2 == 0]


def draw_blocks(
    dims: int,
    layers: int,
    *,
    seed: int = 0,
    heads: Sequence[int] | None = None,
    activations: Sequence[str] = ("relu2", "gelu", "silu", "swiglu"),
    norms: Sequence[str] = ("rms", "layer"),
    dropouts: Sequence[float] = (0.0, 0.1),
) -> list[dict[str, Any]]:
    """One dictionary of options per layer, drawn from `seed` alone.

    Args:
        dims: width; only its divisors that leave an even head width are head counts.
        heads: candidates; default: those between 2 and dims / 16 (at least one).
        activations, norms, dropouts: candidates.

    Raises:
        ValueError: no layers, an empty choice, or a candidate that does not exist or does not divide dims.
    """
    if layers < 1:
        raise ValueError(f"layers {layers} must be at least 1")
    possible = divisors(dims)
    if heads is None:
        heads = [n for n in possible if 2 <= n <= max(2, dims // 16)] or possible
    wrong = [n for n in heads if n not in possible]
    if wrong or not heads:
        raise ValueError(f"heads {wrong or list(heads)} do not cut dims {dims} into even head widths; use {possible}")
    unknown = [a for a in activations if a not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"activations {unknown} are unknown; choose among {', '.join(sorted(ACTIVATIONS))}")
    choices = {"heads": heads, "activation": activations, "norm": norms, "dropout": dropouts}
    empty = [name for name, values in choices.items() if not values]
    if empty:
        raise ValueError(f"nothing to draw from for {', '.join(empty)}")
    draw = random.Random(seed)
    return [{name: draw.choice(list(values)) for name, values in choices.items()} for _ in range(layers)]


def _drawn(
    dims: int, heads: int, *, block: Callable[..., nn.Module], drawn: dict[str, Any], **options: Any
) -> nn.Module:
    return block(dims, drawn["heads"], **{**options, **{k: v for k, v in drawn.items() if k != "heads"}})


def varied_blocks(
    drawn: Sequence[dict[str, Any]],
    *,
    block: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]] = ResidualBlock,
) -> list[Callable[..., nn.Module]]:
    """What `Decoder(block=…)` takes: one callable of (dims, heads, **options) per drawn dictionary.

    A drawn value beats the one the decoder passes: the head count of the decoder, too, so rotary and attention of a
    layer are made for the layer's own. Of several blocks each layer takes its own, as in `Decoder`.
    """
    blocks = repeat("blocks", block, len(drawn))
    return [partial(_drawn, block=own, drawn=dict(one)) for own, one in zip(blocks, drawn, strict=True)]
