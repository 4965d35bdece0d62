"""Rotary position encodings: one interface (`Rotary`), two entrances (`rotate` for q and k, `forward` else)."""

from .axial import AxialRotary, grid_positions
from .base import Rotary
from .combined import CombinedRotary
from .compact import CompactRotary
from .install import install, load_rotary, uninstall
from .learned_base import LearnedBaseRoPE
from .liere import LieRERotary
from .mixed import MixedRotary
from .projected import ProjectedRotary
from .quaternion import QuaternionRotary
from .rope import RoPE
from .rotation_matrix import fold, worth_folding
from .scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    Scaling,
    YaRNScaling,
)

__all__ = [
    "AxialRotary",
    "CombinedRotary",
    "CompactRotary",
    "LearnedBaseRoPE",
    "LieRERotary",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "MixedRotary",
    "NTKScaling",
    "ProjectedRotary",
    "ProportionalScaling",
    "QuaternionRotary",
    "RoPE",
    "Rotary",
    "Scaling",
    "YaRNScaling",
    "fold",
    "grid_positions",
    "install",
    "load_rotary",
    "uninstall",
    "worth_folding",
]
