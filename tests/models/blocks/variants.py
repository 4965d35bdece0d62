"""The blocks under test, and whether their decisions are hard (no difference quotients across a step)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cubelet.models.attention import MultiHeadAttention, SlidingWindowAttention
from cubelet.models.blocks import MixtureOfDepthsBlock, MyelinatedBlock, ResidualBlock, ShortConvBlock, SkippingBlock
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference import blocks as reference
from tests.reference.nudge import combined_inside

ROTARIES = {"none": None, "rope": RoPE, "combined": CombinedRotary, "combined_inside": combined_inside}


class Case(NamedTuple):
    """How to build a block, its slow reference, and what holds for it."""

    make: Callable
    reference: Callable | None = None
    smooth: bool = True
    zeros: bool = True  # a fully masked row is zeros (no biases anywhere)


BLOCKS = {
    "residual": Case(ResidualBlock, reference.residual),
    "residual_layer_gelu": Case(
        partial(ResidualBlock, norm="layer", activation="gelu", mlp_ratio=2), reference.residual, zeros=False
    ),
    "residual_swiglu": Case(
        partial(ResidualBlock, activation="swiglu", attention=partial(MultiHeadAttention, qk_norm=True)),
        reference.residual,
    ),
    "residual_local": Case(partial(ResidualBlock, attention=partial(SlidingWindowAttention, window=5))),
    "short_conv": Case(ShortConvBlock),
    "short_conv_layer": Case(partial(ShortConvBlock, norm="layer"), zeros=False),
    "skipping": Case(partial(SkippingBlock, gate_bias=0.0), reference.skipping, smooth=False),
    "mixture_of_depths": Case(partial(MixtureOfDepthsBlock, capacity=0.6, gate_bias=0.5), smooth=False),
    "myelinated": Case(partial(MyelinatedBlock, layers=4, budget=0.1), reference.myelinated, smooth=False),
}


def factory(name: str, rotary: str, **options) -> Callable:
    """A factory for the conformance suite."""
    return lambda: BLOCKS[name].make(32, 4, rotary=ROTARIES[rotary], **options)
