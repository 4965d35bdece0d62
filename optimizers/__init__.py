"""Optimizers whose momentum follows the spectrum of the gradient, parameter groups and schedules. Plain torch."""

from .fam import FAM, SimpleFAM
from .maxfactor import MaxFactor
from .parameter_groups import parameter_groups
from .schedulers import WarmupCosine

__all__ = ["FAM", "MaxFactor", "SimpleFAM", "WarmupCosine", "parameter_groups"]
