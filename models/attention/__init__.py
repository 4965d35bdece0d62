"""Attention: one interface, several ideas. See docs/attention.md for formulas, costs and what each supports."""

from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, ProjectedAttention
from .content_gated import ContentGatedAttention
from .dynamic_conv import DynamicConvAttention
from .hybrid import HybridAttention
from .integrated import IntegratedAttention, MultiScaleSpanAttention
from .local import LocalAttention
from .multi_head import MultiHeadAttention
from .norm import rms_norm
from .relative_force import RelativeForceAttention
from .span_refiner import SpanRefiner
from .windowed import windowed

__all__ = [
    "AdaptiveSpanAttention",
    "Attention",
    "ContentGatedAttention",
    "DynamicConvAttention",
    "HybridAttention",
    "IntegratedAttention",
    "LocalAttention",
    "MultiHeadAttention",
    "MultiScaleSpanAttention",
    "ProjectedAttention",
    "RelativeForceAttention",
    "SpanRefiner",
    "rms_norm",
    "windowed",
]
