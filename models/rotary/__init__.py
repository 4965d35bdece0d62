"""Rotary position encodings: one interface (`Rotary`), two entrances (`rotate` for q and k, `forward` else)."""

from .base import Rotary
from .combined import CombinedRotary
from .fold import fold, worth_folding
from .rope import RoPE
from .scaling import LinearScaling, Llama3Scaling, NTKScaling, Scaling, YaRNScaling

__all__ = [
    "CombinedRotary",
    "LinearScaling",
    "Llama3Scaling",
    "NTKScaling",
    "RoPE",
    "Rotary",
    "Scaling",
    "YaRNScaling",
    "fold",
    "worth_folding",
]
