"""Callbacks that anyone can attach: they act on what a module offers, and import no model."""

from .controllers import SpanController, WindowController
from .dynamic_base import DynamicBase
from .fam_monitor import FAMMonitor
from .guards import NonFiniteGuard, NonFiniteLoss
from .loss_follower import LossFollower
from .parameter_cycler import ParameterCycler
from .rotation_monitor import RotationMonitor
from .run_summary import RunSummary
from .span_refinement import SpanRefinement
from .step_seed import StepSeed
from .text_samples import TextSamples

__all__ = [
    "DynamicBase",
    "FAMMonitor",
    "LossFollower",
    "NonFiniteGuard",
    "NonFiniteLoss",
    "ParameterCycler",
    "RotationMonitor",
    "RunSummary",
    "SpanController",
    "SpanRefinement",
    "StepSeed",
    "TextSamples",
    "WindowController",
]
