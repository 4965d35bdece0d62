"""Optimizers whose momentum follows the spectrum of the gradient, parameter groups and schedules. Plain torch."""

from .fam import FAM
from .groups import parameter_groups
from .schedulers import WarmupCosine

__all__ = ["FAM", "WarmupCosine", "parameter_groups"]
