"""Handlers: how a kind of parameter turns its band shares into a momentum coefficient α'.

A handler is a band map and a list of thresholds; the three rules say what a threshold is compared with:

- `excess` (default): the share relative to white noise's share of the same bands, minus one.
- `absolute`: the share itself, as the research notes have it. The notes' thresholds lie below the white level, so this
  rule fires for every spectrum that is not clearly low-pass.
- `ratio`: SimpleFAM's, α' = min(0.98, α + 0.05·share of the upper half), the same for every handler.

A cap never lowers a larger α, and a floor never raises a smaller one.
"""

from .bands import equal_bands, half_bands, log_bands, pool, white_bins
from .rules import HANDLERS, RULES, AttentionHandler, ConvHandler, DefaultHandler, EmbeddingHandler, Handler, lift

__all__ = [
    "HANDLERS",
    "RULES",
    "AttentionHandler",
    "ConvHandler",
    "DefaultHandler",
    "EmbeddingHandler",
    "Handler",
    "equal_bands",
    "half_bands",
    "lift",
    "log_bands",
    "pool",
    "white_bins",
]
