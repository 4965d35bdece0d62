"""Attention: one interface, several ideas. See docs/attention.md for formulas, costs and what each supports."""

from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, ProjectedAttention
from .hybrid import HybridAttention
from .local import LocalAttention
from .multi_head import MultiHeadAttention
from .norm import rms_norm
from .windowed import windowed

__all__ = [
    "AdaptiveSpanAttention",
    "Attention",
    "HybridAttention",
    "LocalAttention",
    "MultiHeadAttention",
    "ProjectedAttention",
    "rms_norm",
    "windowed",
]
