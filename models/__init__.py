"""Models in plain torch: `Decoder`, `Encoder`, and in `attention`, `blocks`, `rotary` what they are made of."""

from .cache import KVCache
from .decoder import Decoder
from .encoder import Encoder

__all__ = ["Decoder", "Encoder", "KVCache"]
