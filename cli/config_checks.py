"""Settings that Lightning accepts and fails on later, or answers with a trace: refused before anything is built.

Each check says key, value and fix.
"""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from cubelet.common.errors import ConfigError

from .suggestions import KIND_OF_KEY, class_paths, nearest

# Trainer options that count something, and the least that works.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_nodes": 1,
    "log_every_n_steps": 0,
    "max_steps": -1,
    "max_epochs": -1,
}


def check_config(config: Namespace) -> None:
    """Raise for the first setting of a subcommand's configuration that cannot work.

    Raises:
        ConfigError: with key, value and fix.
    """
    trainer = config.trainer
    for name, least in LEAST.items():
        value = trainer.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise ConfigError(f"trainer.{name}={value} must be at least {least}; leave it out for the default")
    if trainer.val_check_interval is not None and not _is_positive(trainer.val_check_interval):
        raise ConfigError(
            f"trainer.val_check_interval={trainer.val_check_interval} never validates; give a number of batches such "
            "as 500, a share of an epoch such as 0.5, or --trainer.limit_val_batches=0 to go without validation"
        )
    check_machine(trainer)
    check_kinds(config.model)


def check_machine(trainer: Namespace) -> None:
    """Raise where the accelerator, the devices or the strategy do not exist here."""
    accelerator, strategy = trainer.accelerator, trainer.strategy
    available = [name for name in AcceleratorRegistry.available_accelerators() if _is_available(name)]
    gpus = [name for name in available if name in ("cuda", "mps")]
    if isinstance(accelerator, str) and accelerator not in ("auto", *available) and not (accelerator == "gpu" and gpus):
        known = [*AcceleratorRegistry.available_accelerators(), "gpu", "auto"]
        near = nearest(accelerator, known) if accelerator not in known else ""
        reason = f"is unknown{f'; did you mean {near}?' if near else ''}" if accelerator not in known else "is not here"
        raise ConfigError(
            f"trainer.accelerator={accelerator} {reason}; this machine has {', '.join(available)}, and "
            "--trainer.accelerator=auto takes the best of them"
        )
    if str(trainer.devices) in ("0", "[]"):
        raise ConfigError(f"trainer.devices={trainer.devices} trains nowhere; give 1, a larger number, or auto")
    if isinstance(strategy, str) and strategy != "auto" and strategy not in StrategyRegistry:
        known = StrategyRegistry.available_strategies()
        near = nearest(strategy, known)
        raise ConfigError(
            f"trainer.strategy={strategy} is unknown; "
            + (f"did you mean {near}? " if near else "")
            + "Shipped: --config strategy/ddp, --config strategy/fsdp2; on one device leave it out"
        )


def check_kinds(model: Namespace) -> None:
    """Raise where a component of one kind is given as another, such as an attention as rotary."""
    for key, kind in KIND_OF_KEY.items():
        given: Any = model.get(key)
        for value in given if isinstance(given, (list, tuple)) else [given]:  # one, or one for each layer
            path = value.get("class_path") if isinstance(value, Namespace) else value
            if not isinstance(path, str):
                continue
            for other in ("rotary", "attention", "block", "optimizer", "scheduler", "callback", "data"):
                if other != kind and path in class_paths(other).values():
                    names = ", ".join(sorted(class_paths(kind)))
                    raise ConfigError(
                        f"model.{key}={path} is a class of kind {other}, not {kind}; choose one of {names}"
                    )


def _is_positive(interval: Any) -> bool:
    return not isinstance(interval, int | float) or interval > 0


def _is_available(name: str) -> bool:
    return bool(AcceleratorRegistry[name]["accelerator"].is_available())
