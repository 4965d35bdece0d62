"""Start of a run, one of three: anew, from the weights of a checkpoint (`--init_from`), or where one ended.

- `--ckpt_path` resumes: weights, optimizer, schedule, callbacks and place in the data; the checkpoint's model arguments
  win over the configuration's, and `--override KEY=VALUE` wins over both. What differs is told as `key: old → new`.
- `--init_from` takes weights alone, into whatever the configuration says; what does not fit is listed.
- `validate`, `test` and `predict` with a checkpoint and no configuration take the one beside the checkpoint.
- Standing callbacks yield to ordinary Trainer switches (`logger=false`, `barebones=true`, …); a user's own do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from cubelet.callbacks.checkpoints import SHARDED_FACTS, read_checkpoint
from cubelet.callbacks.override_state import OverrideState
from cubelet.callbacks.resume_logs import ResumeLogs
from cubelet.callbacks.run_header import RunHeader
from cubelet.callbacks.run_report import RunReport
from cubelet.common.errors import ConfigError, UnreadableFileError

from .loggers import default_loggers
from .quiet import quiet_dependencies
from .run import Run, resolve_checkpoint

WEIGHTS = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}


class RunStart(LightningCLI):
    """What `CubeletCLI` knows of runs; a base class, so that it stands in a file of its own."""

    slots: Sequence[str] = ()  # keys below `callbacks:`, in the order in which their hooks are called
    run: Run | None = None
    resumed_step: int | None = None  # of the checkpoint that a fit continues from
    _overrides: dict[str, Any] | None = None

    def add_start_arguments(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_name", type=str | None, default=None, help="Folder of this run.")
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="Checkpoint whose weights a new run starts from."
        )
        parser.add_argument(
            "--override", type=list[str], default=[], help="KEY=VALUE that win over the checkpoint's when resuming."
        )

    # -- what the checkpoint and the command line say --

    def _parse_ckpt_path(self) -> None:
        sub = self.config.get("subcommand")
        if not sub:
            return
        config = self.config[sub]
        root, path, source = config.trainer.default_root_dir, config.get("ckpt_path"), config.get("init_from")
        if path and source:
            raise ConfigError("ckpt_path goes on with a run and init_from starts a new one; give one of them")
        if config.get("override") and not path:
            raise ConfigError("override is for a resumed run (ckpt_path); without one, set the option itself")
        if source:
            config.init_from = resolve_checkpoint(source, root)
        if not path:
            return
        found = resolve_checkpoint(path, root)
        if found is None:
            return
        config.ckpt_path = found
        checkpoint = read_checkpoint(found)
        if checkpoint is None:  # on another file system
            return
        self.resumed_step = checkpoint.get("global_step")
        if sub == "fit":
            check_precision(checkpoint, config.trainer.precision, found)
        stored = dict(checkpoint.get("hyper_parameters", {}))
        given = config.model.as_dict()
        stored.pop("vocab_size", None)  # linked from the data
        model = {k: v for k, v in stored.items() if k in given}
        before = flatten(config.model)
        self.config = self.parser.parse_object({sub: {"model": model}}, self.config)
        for key, old, new in differences(flatten(self.config[sub].model), before):
            # jsonargparse fills in what was left out, which is no difference.
            if key.split(".")[0] in model and old is not None:
                rank_zero_warn(
                    f"model.{key}: {new} → {old} (the checkpoint's is used; --override model.{key}={new} keeps yours)"
                )
        self._override(sub)

    def _override(self, sub: str) -> None:
        given = [parse_override(text) for text in self.config[sub].get("override") or []]
        if not given:
            return
        before = flatten(self.config[sub])
        for key, value in given:
            base: Any = self.config[sub]
            if key.split(".")[0] not in base:
                raise ConfigError(f"override {key}={value}: there is no option {key}")
            self.config = self.parser.parse_object({sub: nest(key, value, base)}, self.config)
        for key, old, new in differences(before, flatten(self.config[sub])):
            rank_zero_info(f"{key}: {old} → {new}")
        self._overrides = dict(given)

    # -- what is built --

    def run_arguments(self) -> dict[str, Any]:
        """Return the Trainer's arguments that follow from how the run starts: loggers, callbacks, folder."""
        sub = str(self.subcommand)
        config, init = self.config[sub], self.config_init[sub]
        trainer, arguments = init.trainer, {}
        default_logger = trainer.logger in (None, True)
        writes = sub == "fit" and not trainer.fast_dev_run and not trainer.barebones
        if writes and (default_logger or not trainer.logger):
            self.run = self._claim(config, trainer.default_root_dir)
        if default_logger and not trainer.fast_dev_run:
            arguments["logger"] = False
            if self.run is not None:
                step = self.resumed_step if self._goes_on(config) else None
                arguments["logger"] = default_loggers(self.run.root, self.run.name, resumed_step=step)
        elif self.run is not None:
            arguments["default_root_dir"] = str(self.run.folder)  # without a logger the folder is the trainer's root
        standing = [c for c in (init.callbacks.get(slot) for slot in self.slots) if c is not None]
        if sub != "fit":
            standing = [c for c in standing if isinstance(c, ProgressBar)]
            # Only a fit has use for the others' states; there the warning stays, a callback left out is a difference.
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
        own = trainer.callbacks or []
        callbacks = [*yielding(standing, trainer), *(own if isinstance(own, list) else [own])]
        if arguments.get("logger"):
            callbacks.append(ResumeLogs())
        if sub == "fit" and init.callbacks.get("summary") is not None:  # what speaks at the end speaks at the start
            callbacks += [RunHeader(), RunReport()]
        if self._overrides:
            callbacks.append(OverrideState(self._overrides))
        callbacks.append(QuietProcesses())
        arguments["callbacks"] = callbacks
        return arguments | adjusted(trainer)

    def _goes_on(self, config: Namespace) -> bool:
        earlier = Run.of(config.ckpt_path) if config.get("ckpt_path") else None
        return earlier is not None and self.run is not None and earlier.folder == self.run.folder.resolve()

    def _claim(self, config: Namespace, root: str) -> Run:
        earlier = Run.of(config.ckpt_path) if config.get("ckpt_path") else None
        if earlier is not None and config.run_name in (None, earlier.name):
            return earlier.resume()
        return Run.claim(root, config.run_name)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return super().instantiate_trainer(**kwargs, **self.run_arguments())

    def before_fit(self) -> None:
        source = self.config[str(self.subcommand)].get("init_from")
        if source:
            rank_zero_info(load_weights(self.model, source))

    def release_run(self) -> None:
        """Let others go on in this run's folder, now that it is over."""
        if self.run is not None:
            self.run.release()


class QuietProcesses(Callback):
    """Brings the command's silence to processes that unpickle the Trainer, as those of `ddp_spawn` do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_quietly, ()


def _unpickle_quietly() -> QuietProcesses:
    quiet_dependencies()
    return QuietProcesses()


def config_beside(checkpoint: str) -> Path | None:
    """Return the configuration that lies in a checkpoint's run, or beside the checkpoint itself."""
    run = Run.of(checkpoint)
    beside = Path(checkpoint).parent / "config.yaml"
    return (run.config if run else None) or (beside if beside.is_file() else None)


def yielding(callbacks: Sequence[Callback], trainer: Namespace) -> list[Callback]:
    """Return the standing callbacks that the Trainer's switches leave something to do."""
    bare = bool(trainer.barebones)
    unwanted: list[type] = []
    if bare or trainer.logger is False or trainer.logger == []:
        unwanted += [LearningRateMonitor, DeviceStatsMonitor]
    if bare or trainer.enable_checkpointing is False:
        unwanted += [Checkpoint]
    if bare or trainer.enable_progress_bar is False:
        unwanted += [ProgressBar]
    return [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]


def adjusted(trainer: Namespace) -> dict[str, Any]:
    """Return Trainer arguments that make a switch work beside what a shipped configuration says."""
    arguments: dict[str, Any] = {}
    interval = trainer.val_check_interval
    # A share of an epoch counts within epochs; the shipped configurations count batches over them.
    if isinstance(interval, float) and trainer.check_val_every_n_epoch is None:
        arguments["check_val_every_n_epoch"] = 1
    # A trial run shorter than its validation interval validates once, at its end.
    trial = trainer.max_steps * trainer.accumulate_grad_batches
    if isinstance(interval, int) and 0 < trial < interval:
        arguments["val_check_interval"] = trial
    if trainer.barebones:
        arguments |= {"log_every_n_steps": None, "num_sanity_val_steps": None, "logger": None}
    return arguments


def check_precision(checkpoint: dict[str, Any], precision: Any, path: str) -> None:
    """Raise ConfigError where a run cannot go on in another precision: optimizer states keep that of their weights."""
    weights = [t for t in checkpoint.get("state_dict", {}).values() if t.is_floating_point()]
    stored = {t.dtype for t in weights}
    wanted = WEIGHTS.get(str(precision), torch.float32)
    if stored and wanted not in stored:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
        raise ConfigError(
            f"trainer.precision={precision} holds {str(wanted).removeprefix('torch.')} weights and {path} holds "
            f"{names}; go on in the run's precision, or start from its weights alone with --init_from={path}"
        )


def load_weights(model: nn.Module, path: str) -> str:
    """Load what fits of a checkpoint's weights; return a sentence that lists what does not.

    Raises:
        UnreadableFileError: there are no weights in it, or none fits.
    """
    stored = read_weights(path)
    own = model.state_dict()
    fit = {name: value for name, value in stored.items() if name in own and own[name].shape == value.shape}
    if not fit:
        raise UnreadableFileError(f"no weight of {path} fits this model: its first is {next(iter(stored), 'missing')}")
    model.load_state_dict(fit, strict=False)
    reshaped = [name for name in stored if name in own and name not in fit]
    left = {
        "of another shape": [f"{n} {tuple(stored[n].shape)} → {tuple(own[n].shape)}" for n in reshaped],
        "only in the checkpoint": [n for n in stored if n not in own],
        "drawn anew": [n for n in own if n not in stored],
    }
    listed = [f"{len(names)} {reason}: {', '.join(names)}" for reason, names in left.items() if names]
    return f"{len(fit)} of {len(own)} tensors are from {path}" + "".join(f"; {entry}" for entry in listed)


def read_weights(path: str) -> dict[str, Any]:
    """Return the state_dict of a checkpoint, a file or a sharded folder."""
    if Path(path, SHARDED_FACTS).is_file():
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
        from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

        state: dict[str, Any] = {}
        planner = _EmptyStateDictLoadPlanner(keys={"state_dict"})
        _load_state_dict(state, storage_reader=FileSystemReader(path), planner=planner, no_dist=True)
        return state["state_dict"]
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        raise UnreadableFileError(f"{path} is not a readable checkpoint")
    return checkpoint["state_dict"]


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of KEY=VALUE, the value as YAML has it."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"override {text!r} is not KEY=VALUE, such as model.optimizer.init_args.lr=0.001")
    return key, yaml.safe_load(value)


def nest(key: str, value: Any, base: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for a.b, with the class paths of `base` where components stand on the way."""
    name, _, rest = key.partition(".")
    below = base.get(name) if isinstance(base, Namespace) else None
    inner = nest(rest, value, below) if rest else value
    if rest and isinstance(below, Namespace) and "class_path" in below and isinstance(inner, dict):
        inner = {"class_path": below.class_path, **inner}
    return {name: inner}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a configuration, without options that are not set."""
    if isinstance(config, Namespace):
        config = vars(config)
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if value is not None:
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) of what two flat configurations say otherwise; None where one says nothing."""
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
