"""Optimizers whose momentum follows the spectrum of the gradient, parameter groups and schedules. Plain torch."""

from .fam import FAM
from .groups import parameter_groups
from .maxfactor import MaxFactor
from .schedulers import WarmupCosine
from .simple_fam import SimpleFAM

__all__ = ["FAM", "MaxFactor", "SimpleFAM", "WarmupCosine", "parameter_groups"]
