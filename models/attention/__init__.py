"""Attention: one interface, several ideas. See docs/attention.md for formulas, costs and what each supports."""

from .base import Attention, ProjectedAttention
from .multi_head import MultiHeadAttention
from .norm import rms_norm

__all__ = ["Attention", "MultiHeadAttention", "ProjectedAttention", "rms_norm"]
