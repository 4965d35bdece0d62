"""Settings of an optimizer and its schedule that win over those of the checkpoint a run is resumed from.

A checkpoint brings back an optimizer's settings with its state, and a schedule's with its place. This callback notes
the configured values before that and writes the overridden ones back after it.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

OPTIMIZER, SCHEDULER = "model.optimizer.init_args.", "model.scheduler.init_args."


class OverrideState(Callback):
    """Writes overridden settings into a resumed run's optimizers and schedules. Made by `cubelet fit --override`.

    Args:
        overrides: {key of the configuration: value}; others than the optimizer's and scheduler's need nothing.

    Example:
        >>> callback = OverrideState({"model.optimizer.init_args.lr": 1e-4})
        >>> sorted(callback.optimizer)
        ['lr']
    """

    def __init__(self, overrides: dict[str, Any]) -> None:
        self.optimizer = {k.removeprefix(OPTIMIZER) for k in overrides if k.startswith(OPTIMIZER)}
        self.scheduler = {k.removeprefix(SCHEDULER) for k in overrides if k.startswith(SCHEDULER)}
        self._groups: list[list[dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # The checkpoint's optimizer states are loaded after this hook.
        self._groups = [
            [{k: group[k] for k in (*self.optimizer, "initial_lr") if k in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._schedules = [
            {k: getattr(c.scheduler, k) for k in self.scheduler if hasattr(c.scheduler, k)}
            for c in trainer.lr_scheduler_configs
        ]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, configured in zip(optimizer.param_groups, groups, strict=True):
                if "lr" in configured:
                    # Where a schedule stands is kept: the rate is scaled as its first value is.
                    rate = configured.pop("initial_lr", configured["lr"])
                    group["lr"] = group["lr"] * rate / group.get("initial_lr", group["lr"])
                    if "initial_lr" in group:
                        group["initial_lr"] = rate
                    del configured["lr"]
                group.update(configured)
        for config, settings in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            scheduler: Any = config.scheduler
            for name, value in settings.items():
                setattr(scheduler, name, value)
            if "lr" in self.optimizer and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
