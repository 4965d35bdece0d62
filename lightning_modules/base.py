"""What every model that this project trains shares: plain hyper-parameters, optimizer groups, schedule, checkpoints.

- Hyper-parameters are stored as plain data (`component_config.py`), so `load_from_checkpoint(path)` needs nothing but
  the path and reads with `weights_only=True`, whether the checkpoint came from the command line or from Python. The
  tokenizer travels in the checkpoint too.
- Values are logged only on the steps at which the loggers write: a logged value costs 0.3-0.6 ms a step, which a small
  model feels.
- A subclass gives `training_losses` and `batch_units`; see `SequenceModule`.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cubelet.common.errors import ConfigError
from cubelet.common.lightning_internals import should_log
from cubelet.datamodules.tokenizers import tokenizer_from_dict
from cubelet.optimizers import FAM, parameter_groups

from .component_config import from_config, to_config, unwrap

Component = Callable[[int, int], nn.Module]
# One for all layers, or a sequence that is repeated over them. jsonargparse reads and writes a value by the first type
# that takes it: a callable takes anything, None included, so it comes after sequences and `Literal[None]`; and a list
# takes `--model.block.taps=3`, as its only entry, so it comes after the callable.
Layers = tuple[Component, ...] | Component | list[Component]
OptionalLayers = tuple[Literal[None] | Component, ...] | Component | list[Literal[None] | Component] | None


def default_optimizer(params: Iterable[Any]) -> Optimizer:
    """Return FAM over AdamW, with settings that train a small model (its momentum base needs a far higher rate)."""
    return FAM(params, lr=3e-3, base="adamw", beta2=0.99, weight_decay=0.1)


class SequenceModule(L.LightningModule):
    """Base of the LightningModules: all but the model and its loss.

    A subclass
    - calls `store_arguments(locals())` first in its constructor, and sets `optimizer` and `scheduler` from the result;
    - overrides `training_losses`, and `batch_units` with `units_name` for the throughput that is logged;
    - overrides `read_tokenizer` where its tokenizer is not one of `cubelet.datamodules.tokenizers`.

    Example:
        >>> class Ratio(SequenceModule):
        ...     def __init__(self, start: float = 0.5) -> None:
        ...         super().__init__()
        ...         self.store_arguments(locals())
        ...         self.weight = nn.Parameter(torch.tensor(start))
        ...     def training_losses(self, batch):
        ...         loss = (batch["tokens"] * self.weight - batch["targets"]).square().mean()
        ...         return loss, {"train_loss": loss.detach()}
        ...     def batch_units(self, batch):
        ...         return batch["tokens"].numel()
        >>> dict(Ratio(0.25).hparams)
        {'start': 0.25}
    """

    units_name = "tokens_per_second"

    def __init__(self) -> None:
        super().__init__()
        self.optimizer: Any = default_optimizer
        self.scheduler: Any = None
        self.tokenizer: Any = None
        self._lr: float | None = None  # in place of the configured optimizer's
        self._clock = 0.0
        self._pause = 0.0  # when a validation began, which does not count as training
        self._units = 0.0
        self._open_total = 0  # the length given to a scheduler that leaves it open

    def store_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Save a constructor's arguments as plain hyper-parameters; return them with components as callables.

        Args:
            arguments: the constructor's `locals()`.
        """
        given = {k: unwrap(v) for k, v in arguments.items() if k not in ("self", "__class__")}
        self.save_hyperparameters({k: to_config(v) for k, v in given.items()})
        return {k: from_config(v) for k, v in given.items()}

    def training_losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is minimised (0-dim, with gradient), and detached values to log; `train_loss` is among them."""
        raise NotImplementedError

    def batch_units(self, batch: dict[str, Any]) -> float:
        """Return how much of what `units_name` counts is in a batch, without a look at the device."""
        raise NotImplementedError

    @staticmethod
    def read_tokenizer(stored: dict[str, Any]) -> Any:
        """Return the tokenizer that a checkpoint holds as plain data."""
        return tokenizer_from_dict(stored)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        total, values = self.training_losses(batch)
        self._units += self.batch_units(batch) * self.trainer.world_size
        if should_log(self.trainer):
            now = time.monotonic()
            logged = dict(values)
            if self._clock:
                logged[self.units_name] = torch.tensor(self._units / max(now - self._clock, 1e-9))
            self._clock, self._units = now, 0.0
            self.log_dict(logged, prog_bar=True)
        return {"loss": total, "train_loss": values["train_loss"]}

    def on_train_start(self) -> None:
        self._clock, self._units = time.monotonic(), 0.0
        self._stretch_schedule()

    def on_validation_start(self) -> None:
        self._pause = time.monotonic()

    def on_validation_end(self) -> None:
        self._clock += time.monotonic() - self._pause

    def _stretch_schedule(self) -> None:
        """A run that goes on beyond its first length follows the longer run's schedule, not the restored one's end."""
        for config in self.trainer.lr_scheduler_configs if self._open_total else ():
            scheduler: Any = config.scheduler
            if getattr(scheduler, "total", self._open_total) != self._open_total:  # a finder of rates has its own
                scheduler.total = self._open_total
                for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
                    group["lr"] = rate

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.tokenizer = getattr(data, "tokenizer", self.tokenizer)

    def _optimizer_settings(self) -> dict[str, Any]:
        return self.optimizer([nn.Parameter(torch.zeros(1))]).defaults

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer; `Tuner.lr_find` and `LearningRateFinder` set it before it is built."""
        return self._optimizer_settings()["lr"] if self._lr is None else self._lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self._lr = float(rate)

    def configure_optimizers(self) -> Any:
        make = self.optimizer
        # The optimizer's own settings, read from one made on a throw-away parameter, so that group factors
        # (a smaller rate for embeddings) apply to whatever rate was configured, of any optimizer class.
        settings = self._optimizer_settings()
        groups = parameter_groups(self, lr=self.lr, weight_decay=settings.get("weight_decay", 0.0))
        optimizer = make(groups)
        if self.scheduler is None:
            return optimizer
        signature = inspect.signature(self.scheduler).parameters
        total_is_open = "total" in signature and signature["total"].default is None
        extra = {}
        if total_is_open:
            # A trial run shorter than its warm-up stays inside it.
            least = [signature[k].default or 0 for k in ("warmup", "decay_start") if k in signature]
            extra["total"] = self._open_total = max(int(self.trainer.estimated_stepping_batches), *least)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer, **extra), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tokenizer is not None:
            checkpoint["tokenizer"] = self.tokenizer.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("tokenizer")
        if stored is None:
            return
        restored = self.read_tokenizer(stored)
        if self.tokenizer is not None and self.tokenizer.sha256 != restored.sha256:
            raise ConfigError(
                f"the data's vocabulary ({self.tokenizer.vocab_size} tokens) differs from the one this checkpoint was "
                f"trained with ({restored.vocab_size} tokens); use the corpus and tokenizer of that run"
            )
        self.tokenizer = restored

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does, but report weights that do not fit in one sentence.

        Raises:
            ConfigError: missing or unexpected names, or other shapes; the first of each is named.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            own = self.state_dict()
            kinds = {
                "missing": sorted(own.keys() - state_dict.keys()),
                "unexpected": sorted(state_dict.keys() - own.keys()),
                "of another shape": sorted(
                    k for k, v in own.items() if k in state_dict and v.shape != state_dict[k].shape
                ),
            }
            faults = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
            if not faults:
                raise
            raise ConfigError(
                f"the checkpoint's weights do not fit this model: {'; '.join(faults)}; it was written for another "
                "configuration or by another version of cubelet"
            ) from error
