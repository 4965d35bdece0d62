"""Callbacks that anyone can attach: they act on what a module has, and import no model."""

from .attention_maps import AttentionMaps
from .dynamic_base import DynamicBase
from .fam_monitor import FAMMonitor
from .last_checkpoint import LastCheckpoint
from .loss_callback import LossCallback
from .loss_controller import LossController, LossFollower, TrendDetector
from .nonfinite_guard import NonFiniteGuard, NonFiniteLoss
from .parameter_cycler import ParameterCycler
from .progress import ProgressBar
from .rotation_monitor import RotationMonitor
from .run_metrics import RunMetrics
from .run_summary import RunSummary
from .schedule_free import ScheduleFreeModes
from .span_controller import SpanController
from .span_q_learning import SpanQLearning, SpanRefinement
from .speech_samples import SpeechSamples
from .step_seed import StepSeed
from .text_samples import TextSamples
from .window_controller import WindowController

__all__ = [
    "AttentionMaps",
    "DynamicBase",
    "FAMMonitor",
    "LastCheckpoint",
    "LossCallback",
    "LossController",
    "LossFollower",
    "NonFiniteGuard",
    "NonFiniteLoss",
    "ParameterCycler",
    "ProgressBar",
    "RotationMonitor",
    "RunMetrics",
    "RunSummary",
    "ScheduleFreeModes",
    "SpanController",
    "SpanQLearning",
    "SpanRefinement",
    "SpeechSamples",
    "StepSeed",
    "TextSamples",
    "TrendDetector",
    "WindowController",
]
