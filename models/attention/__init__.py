"""Attention: one interface, several ideas. See docs/attention.md for formulas, costs and what each supports."""

from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, ProjectedAttention
from .content_gated import ContentGatedAttention
from .dynamic_conv import DynamicConvAttention
from .hybrid import HybridAttention
from .local import LocalAttention
from .multi_head import MultiHeadAttention
from .norm import rms_norm
from .relative_force import RelativeForceAttention
from .windowed import windowed

__all__ = [
    "AdaptiveSpanAttention",
    "Attention",
    "ContentGatedAttention",
    "DynamicConvAttention",
    "HybridAttention",
    "LocalAttention",
    "MultiHeadAttention",
    "ProjectedAttention",
    "RelativeForceAttention",
    "rms_norm",
    "windowed",
]
