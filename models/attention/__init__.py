"""Attention: one interface, several ideas. See docs/attention.md for formulas, costs and what each supports."""

from cubelet.models.kernels.rms_norm import rms_norm
from cubelet.models.kernels.sliding_window import sliding_window_attention

from .adaptive_span import AdaptiveSpanAttention
from .base import Attention, ProjectedAttention
from .content_gated import ContentGatedAttention
from .cope import CoPEAttention
from .differential import DifferentialAttention
from .dynamic_conv import DynamicConvAttention
from .forgetting import ForgettingAttention
from .gated_output import GatedOutputAttention
from .hybrid import HybridAttention
from .integrated import IntegratedAttention, MultiScaleSpanAttention
from .latent import LatentAttention
from .maps import attention_maps
from .masking import AttentionScope, masked_attention
from .multi_head import MultiHeadAttention
from .parallel import ParallelAttention
from .relative_force import RelativeForceAttention
from .scalable_softmax import ScalableSoftmaxAttention
from .sink import SinkAttention
from .sliding_window import LocalAttention, SlidingWindowAttention
from .span_refiner import SpanRefiner

windowed = sliding_window_attention
"""The name of `sliding_window_attention` in 0.1.0."""

__all__ = [
    "AdaptiveSpanAttention",
    "Attention",
    "AttentionScope",
    "CoPEAttention",
    "ContentGatedAttention",
    "DifferentialAttention",
    "DynamicConvAttention",
    "ForgettingAttention",
    "GatedOutputAttention",
    "HybridAttention",
    "IntegratedAttention",
    "LatentAttention",
    "LocalAttention",
    "MultiHeadAttention",
    "MultiScaleSpanAttention",
    "ParallelAttention",
    "ProjectedAttention",
    "RelativeForceAttention",
    "ScalableSoftmaxAttention",
    "SinkAttention",
    "SlidingWindowAttention",
    "SpanRefiner",
    "attention_maps",
    "masked_attention",
    "rms_norm",
    "sliding_window_attention",
    "windowed",
]
