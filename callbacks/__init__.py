"""Callbacks that anyone can attach: they act on what a module offers, and import no model."""

from .controllers import SpanController, WindowController
from .dynamic_base import DynamicBase
from .fam_monitor import FAMMonitor
from .loss_follower import LossFollower
from .parameter_cycler import ParameterCycler
from .run_summary import RunSummary
from .text_samples import TextSamples

__all__ = [
    "DynamicBase",
    "FAMMonitor",
    "LossFollower",
    "ParameterCycler",
    "RunSummary",
    "SpanController",
    "TextSamples",
    "WindowController",
]
