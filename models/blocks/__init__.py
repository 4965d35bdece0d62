"""Blocks: what a decoder is a stack of."""

from .residual import ResidualBlock

__all__ = ["ResidualBlock"]
