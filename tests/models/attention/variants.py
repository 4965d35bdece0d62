"""The attentions under test, small enough that every rule (window, span, chunk) bites within 40 tokens."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cubelet.models import attention as family
from cubelet.models.attention.score_bias import FIRE, ALiBi, T5Bias
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference import attention as reference
from tests.reference.nudge import combined_inside

ROTARIES = {
    "none": lambda: None,
    "rope": lambda: RoPE(32, 4),
    "combined": lambda: CombinedRotary(32, 4),
    "combined_inside": lambda: combined_inside(32, 4),
}


class Case(NamedTuple):
    """How to build a variant, its slow reference, and what holds for it."""

    make: Callable
    reference: Callable | None = None
    smooth: bool = True  # gradients equal difference quotients
    window: int | None = None  # exactly so many keys reach a query
    noncausal: bool = True


ATTENTIONS = {
    "multi_head": Case(family.MultiHeadAttention, reference.multi_head),
    "multi_head_options": Case(
        partial(family.MultiHeadAttention, kv_heads=2, qk_norm=True, relative_bias=9), reference.multi_head
    ),
    "alibi": Case(partial(family.MultiHeadAttention, score_bias=partial(ALiBi, learned=True), kv_heads=2)),
    "t5_bias": Case(partial(family.MultiHeadAttention, score_bias=partial(T5Bias, buckets=6, max_distance=9))),
    "fire": Case(partial(family.MultiHeadAttention, score_bias=partial(FIRE, width=4, threshold=3.0)), noncausal=False),
    "local": Case(partial(family.SlidingWindowAttention, window=7, kv_heads=2), reference.local, window=7),
    "local_bias": Case(
        partial(family.SlidingWindowAttention, window=7, relative_bias=True), reference.local, window=7, noncausal=False
    ),
    "adaptive_span": Case(
        partial(family.AdaptiveSpanAttention, max_span=9, ramp=3, initial_span=0.4, temperature_slope=0.3),
        reference.adaptive_span,
    ),
    "content_gated": Case(partial(family.ContentGatedAttention, gate_bias=0.0), reference.content_gated, smooth=False),
    "dynamic_conv": Case(partial(family.DynamicConvAttention, taps=3, kv_heads=2), reference.dynamic_conv),
    "relative_force": Case(family.RelativeForceAttention, reference.relative_force),
    "multi_scale": Case(
        partial(family.MultiScaleSpanAttention, scales=((4, 6), (9, 12)), ramp=3),
        reference.multi_scale,
    ),
    "integrated": Case(
        partial(family.IntegratedAttention, scales=((4, 6), (11, 7)), ramp=3, passes=2, gate_bias=0.0),
        reference.integrated,
        smooth=False,
    ),
    "forgetting": Case(
        partial(family.ForgettingAttention, gate_bias=1.0, kv_heads=2), reference.forgetting, noncausal=False
    ),
    "cope": Case(partial(family.CoPEAttention, positions=5, kv_heads=2), reference.cope, noncausal=False),
    "gated_output": Case(partial(family.GatedOutputAttention, kv_heads=2), reference.gated_output),
    "gated_output_head": Case(partial(family.GatedOutputAttention, gate="head"), reference.gated_output),
    "sink": Case(partial(family.SinkAttention, kv_heads=2, qk_norm=True), reference.sink),
    "scalable_softmax": Case(
        partial(family.ScalableSoftmaxAttention, kv_heads=2, qk_norm=True), reference.scalable_softmax
    ),
    "differential": Case(partial(family.DifferentialAttention, initial_lambda=0.4), reference.differential),
    "latent": Case(partial(family.LatentAttention, latent=12), reference.latent),
    "hybrid": Case(partial(family.HybridAttention, window=6), reference.hybrid),
    "hybrid_concat": Case(partial(family.HybridAttention, window=6, join="concat"), reference.hybrid),
}
REFERENCES = {name: case.reference for name, case in ATTENTIONS.items() if case.reference is not None}


def factory(name: str, rotary: str, **options) -> Callable:
    """A factory for the conformance suite."""
    return lambda: ATTENTIONS[name].make(32, 4, rotary=ROTARIES[rotary](), **options)
