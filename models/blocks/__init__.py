"""Blocks: what a decoder is a stack of."""

from .residual import ResidualBlock
from .short_conv import ShortConv, ShortConvBlock

__all__ = ["ResidualBlock", "ShortConv", "ShortConvBlock"]
