"""`SyntheticDataModule`: tasks of any length with one right answer, where what a model knows of positions decides.

Trained on short sequences and measured on longer ones, by loss and by the share of rows that are right to the last
token. The tasks are in `synthetic_tasks.py`. Every batch is a pure function of (seed, place in the stream), so the
loader resumes anywhere and all variants see the same data. Validation is a fixed set of the longest training length,
drawn from a stream of its own.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cubelet.common.checks import check_at_least, check_choice
from cubelet.common.seeds import derive_key

from .base import ResumableDataModule
from .loader import IGNORE
from .synthetic_tasks import TASKS

Task = Literal["copy", "reverse", "sort", "addition", "parity", "recall"]
_TRAIN, _VALIDATION, _LENGTH = range(3)


class SyntheticDataModule(ResumableDataModule):
    """Batches `{"tokens": (b, s), "targets": (b, s)}` int64 of an artificial task; targets are −100 where nothing is
    to be predicted.

    Args:
        task: "copy", "reverse", "sort", "addition", "parity" or "recall"; see `synthetic_tasks.py`.
        context_length: longest sequence in training, and the length in validation, in tokens.
        batch_size: sequences in a batch, on each rank.
        min_length: shortest sequence in training, in tokens.
        symbols: size of the alphabet. At length L sort needs (L − 1) // 2, recall 2 (L // 4), addition 11.
        val_batches: batches of the validation set.
        batches_per_epoch: an epoch's length, for those who count epochs.
        seed: of the stream of training batches; independent of the global seed and of the validation set.

    Attributes:
        vocab_size: symbols and the separator.
        has_answers: True, so that `RunMetrics` counts rows that are right to the last token.

    Raises:
        ValueError: sizes that do not fit together.

    Example:
        >>> data = SyntheticDataModule("reverse", context_length=9, batch_size=1, min_length=9, symbols=10)
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch["tokens"].tolist(), batch["targets"].tolist()
        ([[4, 6, 6, 8, 10, 8, 6, 6, 4]], [[-100, -100, -100, -100, 8, 6, 6, 4, -100]])
    """

    has_answers = True

    def __init__(
        self,
        task: Task = "copy",
        context_length: int = 64,
        batch_size: int = 32,
        *,
        min_length: int = 8,
        symbols: int = 256,
        val_batches: int = 8,
        batches_per_epoch: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("task", task, TASKS)
        sizes = {"batch_size": batch_size, "val_batches": val_batches, "batches_per_epoch": batches_per_epoch}
        for name, size in sizes.items():
            check_at_least(name, size, 1)
        if not 5 <= min_length <= context_length:
            raise ValueError(f"min_length {min_length} must lie between 5 and context_length {context_length}")
        self.save_hyperparameters(logger=False)
        self.task, self.context_length, self.min_length, self.batch_size = task, context_length, min_length, batch_size
        self.symbols, self.val_batches, self.batches_per_epoch = symbols, val_batches, batches_per_epoch
        self.seed, self.vocab_size = seed, symbols + 1
        self._check(context_length)

    def _check(self, length: int) -> None:
        task = TASKS[self.task]
        needed = task.needed_symbols(task.size(length))
        if self.symbols < needed:
            raise ValueError(f"{self.task} at length {length} needs at least {needed} symbols, got {self.symbols}")

    def batch(self, stream: int, place: int, rank: int = 0, *, length: int, least: int) -> dict[str, Tensor]:
        """Batch number `place` of a stream: a pure function of the arguments and, in training, the seed.

        Each row has a size of its own, from the largest that fits into `least` tokens to the largest that fits into
        `length`; what is left over is the separator, with no target.
        """
        seed, task = self.seed if stream == _TRAIN else 0, TASKS[self.task]
        draw = np.random.default_rng([derive_key(seed, stream, place), rank, length])
        text = np.full((self.batch_size, length + 1), self.symbols, dtype=np.int64)
        targets = np.full_like(text, IGNORE)
        for row, n in enumerate(draw.integers(task.size(least), task.size(length) + 1, self.batch_size)):
            tokens, predicted = task.row(draw, int(n), self.symbols)
            text[row, : len(tokens)] = tokens
            targets[row, : len(tokens)][predicted] = tokens[predicted]
        return {"tokens": torch.from_numpy(text[:, :-1].copy()), "targets": torch.from_numpy(targets[:, 1:].copy())}

    def train_dataloader(self) -> "Stream":
        """An endless stream that goes on from the trainer's count of batches."""
        return Stream(self, _TRAIN, self.batches_per_epoch, self._place()[0], self._counter())

    def val_dataloader(self) -> "Stream":
        """The same `val_batches` batches of full length every time."""
        return Stream(self, _VALIDATION, self.val_batches, self._place()[0])

    test_dataloader = val_dataloader

    def length_batches(self, length: int, count: int) -> Iterator[dict[str, Tensor]]:
        """About `count` sequences of exactly `length` tokens, for length curves; nothing else is predicted than in
        training.

        Raises:
            ValueError: an alphabet too small for that length.
        """
        self._check(length)
        for place in range(-(-count // self.batch_size)):
            yield self.batch(_LENGTH, place, length=length, least=length)


class Stream:
    """Batches of one stream: from the first one, or from `trained()` on where training is counted elsewhere."""

    def __init__(self, data: SyntheticDataModule, stream: int, length: int, rank: int, trained: Any = None) -> None:
        self.data, self.stream, self.length, self.rank, self.trained = data, stream, length, rank, trained
        self.batch_size = data.batch_size

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, int]:
        """Nothing: the trainer's own count says where to go on. Offered so that Lightning knows that it can."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `state_dict`."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        data, first = self.data, self.trained() if self.trained else 0
        least = data.min_length if self.stream == _TRAIN else data.context_length
        for place in range(first, first + self.length):
            yield data.batch(self.stream, place, self.rank, length=data.context_length, least=least)
