"""Models in plain torch: `Decoder`, and in `attention`, `blocks`, `rotary` what it is made of."""

from .cache import KVCache
from .decoder import Decoder

__all__ = ["Decoder", "KVCache"]
