"""Blocks: what a decoder is a stack of."""

from .mixture_of_depths import MixtureOfDepthsBlock
from .mlp import MLP
from .myelinated import MyelinatedBlock
from .residual import ResidualBlock
from .short_conv import ShortConv, ShortConvBlock
from .skipping import SkippingBlock
from .varied import draw_blocks, varied_blocks

__all__ = [
    "MLP",
    "MixtureOfDepthsBlock",
    "MyelinatedBlock",
    "ResidualBlock",
    "ShortConv",
    "ShortConvBlock",
    "SkippingBlock",
    "draw_blocks",
    "varied_blocks",
]
