"""What the project's data modules share: their place among ranks, the count of batches, and whether a checkpoint fits.

Preparing happens in their constructors, because the model's vocabulary is linked from `vocab_size` before Lightning
calls any hook.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from cubelet.common.errors import ConfigError
from cubelet.common.lightning_internals import trained_batches


class ResumableDataModule(LightningDataModule):
    """A LightningDataModule whose training batches follow from the number of batches trained on.

    A subclass gives `state_dict` with `corpus`, `corpus_sha256` and `tokenizer_sha256`, and calls `_check_state`.

    Example:
        >>> class Numbers(ResumableDataModule):
        ...     def state_dict(self):
        ...         return {"corpus": "numbers", "corpus_sha256": "5ab1", "tokenizer_sha256": "0c1d"}
        ...     def load_state_dict(self, state_dict):
        ...         self._check_state(state_dict, vocabulary="other digits", data="list of numbers")
        >>> Numbers().load_state_dict({"corpus": "primes", "corpus_sha256": "77f0", "tokenizer_sha256": "0c1d"})
        Traceback (most recent call last):
        cubelet.common.errors.ConfigError: the checkpoint was trained on another list of numbers ...
    """

    num_workers: int = 0

    def _place(self) -> tuple[int, int]:
        """Return rank and number of ranks among those that see different data (with tensor parallelism not all do)."""
        if self.trainer is not None and (known := self.trainer.distributed_sampler_kwargs):
            return known["rank"], known["num_replicas"]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _loading(self) -> dict[str, Any]:
        """Return the loaders' options that depend on the machine."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _counter(self) -> Callable[[], int] | None:
        """Return what counts the batches trained on: the trainer, or None in a loop of one's own."""
        return None if self.trainer is None else lambda: trained_batches(self.trainer)

    def _repeat_few(self, order: Any) -> None:
        """Let a training order start over after the trainer's `overfit_batches`."""
        if few := getattr(self.trainer, "overfit_batches", 0):
            order.repeat = min(few, len(order)) if isinstance(few, int) else max(1, int(few * len(order)))

    def _is_fitting(self) -> bool:
        """Return whether this is a fit, or no trainer says what it is."""
        return self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)

    def _check_state(self, state_dict: dict[str, Any], *, vocabulary: str, data: str, hint: str = "") -> None:
        """Refuse a checkpoint of another vocabulary, and to go on training on other data.

        Args:
            state_dict: of the checkpoint.
            vocabulary: the sentence for another vocabulary.
            data: what the data is called, as "text".
            hint: behind both sentences.

        Raises:
            ConfigError: says what differs.
        """
        now = self.state_dict()
        if state_dict["tokenizer_sha256"] != now["tokenizer_sha256"]:
            raise ConfigError(vocabulary + hint)
        if self._is_fitting() and state_dict["corpus_sha256"] != now["corpus_sha256"]:
            theirs, ours = (f"corpus '{s['corpus']}', sha256 {s['corpus_sha256'][:12]}" for s in (state_dict, now))
            raise ConfigError(
                f"the checkpoint was trained on another {data} ({theirs}) than this one ({ours}); restore the {data} "
                f"to resume, or start a new run{hint}"
            )
