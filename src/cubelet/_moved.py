"""Old module names of 0.1.0, so that its configs, checkpoints and imports keep working.

One table and one finder instead of a file for each old name. An old module is an empty one that looks its attributes
up in the new places; the classes found there are the same objects.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

# Old module -> the modules that hold its public names now, all below `cubelet.`.
MOVED: dict[str, tuple[str, ...]] = {
    "datamodules.prepare": ("datamodules.token_cache", "datamodules.folder"),
    "lightning_modules.cli": ("cli.main", "cli.lightning_cli", "callbacks.save_config", "callbacks.resume_logs"),
    "lightning_modules.messages": ("cli.errors", "cli.quiet", "cli.parser", "cli.suggestions"),
    "lightning_modules.generate": ("cli.generate",),
    "lightning_modules.loggers": ("cli.loggers",),
    "lightning_modules.comparison": ("compare",),
    "lightning_modules.comparison.command": ("compare.command",),
    "lightning_modules.comparison.conduct": ("compare.runner",),
    "lightning_modules.comparison.controls": ("models.rotary.unfolded",),
    "lightning_modules.comparison.execute": ("compare.processes",),
    "lightning_modules.comparison.experiment": ("compare.experiment",),
    "lightning_modules.comparison.figures": ("compare.figures",),
    "lightning_modules.comparison.measure": ("callbacks.run_metrics", "callbacks.length_curve", "compare"),
    "lightning_modules.comparison.plan": ("compare.runs",),
    "lightning_modules.comparison.report": ("compare.report",),
    "lightning_modules.comparison.statistics": ("compare.statistics",),
    "lightning_modules.comparison.tune": ("compare.tune",),
    "lightning_modules.last_checkpoint": ("callbacks.last_checkpoint",),
    "lightning_modules.checkpoint_io": ("callbacks.checkpoint_io",),
    "lightning_modules.checkpoints": ("callbacks.checkpoints",),
    "lightning_modules.interruption": ("callbacks.signals",),
    "lightning_modules.progress": ("callbacks.progress",),
    "lightning_modules.initialization": ("lightning_modules.seeded_init",),
    "models.attention.joined": ("models.attention.parallel",),
    "models.attention.local": ("models.attention.sliding_window",),
    "models.attention.norm": ("models.kernels.rms_norm",),
    "models.attention.view": ("models.attention.masking",),
    "models.attention.windowed": ("models.attention",),
    "lightning_modules.components": ("lightning_modules.component_config",),
    "callbacks.base_targets": ("callbacks.rotary_base_adapters",),
    "callbacks.controllers": ("callbacks.window_controller", "callbacks.span_controller"),
    "callbacks.cycle_members": ("callbacks.parameter_cycler.members",),
    "callbacks.cycle_order": ("callbacks.parameter_cycler.order",),
    "callbacks.dump_file": ("callbacks.jsonl_log",),
    "callbacks.guards": ("callbacks.nonfinite_guard",),
    "callbacks.keyed": ("callbacks.base",),
    "callbacks.loss_follower": ("callbacks.loss_controller",),
    "callbacks.loss_following": ("callbacks.loss_controller",),
    "callbacks.offers": ("callbacks.protocols", "callbacks.module_search"),
    "callbacks.span_refinement": ("callbacks.span_q_learning",),
    "callbacks.step_loss": ("callbacks.loss_callback",),
    "models.rotary.fold": ("models.rotary.rotation_matrix",),
    "models.rotary.orthogonal": ("models.rotary.rotation_matrix",),
    "models.rotary.turning": ("models.rotary.base", "models.rotary.rotation_matrix"),
    "optimizers.analysis": ("optimizers.spectral_momentum",),
    "optimizers.bases": ("optimizers.updates",),
    "optimizers.capturable": ("optimizers.foreach",),
    "optimizers.entries": ("optimizers.foreach",),
    "optimizers.factored": ("optimizers.maxfactor",),
    "optimizers.groups": ("optimizers.parameter_groups",),
    "optimizers.handlers": ("optimizers.momentum_rules",),
    "optimizers.handlers.bands": ("optimizers.momentum_rules",),
    "optimizers.handlers.rules": ("optimizers.momentum_rules",),
    "optimizers.plan": ("optimizers.foreach",),
    "optimizers.planned": ("optimizers.base",),
    "optimizers.simple_fam": ("optimizers.fam",),
    "optimizers.spectra": ("optimizers.spectral_momentum",),
}


class MovedModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old names of `MOVED`; everything else is left to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        room, _, old = fullname.partition(".")
        if room != "cubelet" or old not in MOVED:
            return None
        is_package = any(name.startswith(f"{old}.") for name in MOVED)
        return importlib.util.spec_from_loader(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        places = MOVED[module.__name__.partition(".")[2]]

        def look_up(name: str) -> object:
            for place in () if name.startswith("__") else places:
                new = importlib.import_module(f"cubelet.{place}")
                if hasattr(new, name):
                    return getattr(new, name)
            raise AttributeError(f"module {module.__name__!r} (now {', '.join(places)}) has no attribute {name!r}")

        module.__getattr__ = look_up


def install_finder() -> None:
    """Make the old names importable; a second call changes nothing."""
    if not any(isinstance(finder, MovedModuleFinder) for finder in sys.meta_path):
        # First, so that an empty folder that a checkout left behind under an old name is not taken for it.
        sys.meta_path.insert(0, MovedModuleFinder())
