"""`SyntheticDataModule`: copying and associative recall at any length, where what a model knows of positions decides.

Trained on short sequences and measured on longer ones (as in https://arxiv.org/abs/2305.19466). Choices:

- **copy**: n symbols, a separator, the same n symbols again; only the second half is predicted. Finding the symbol
  n + 1 places back needs positions, and n changes from row to row.
- **recall** (multi-query associative recall, https://arxiv.org/abs/2312.04927): pairs of key and value, then all keys
  again in another order, each to be answered by its value; only the answers are predicted.
- Every batch is a pure function of (seed, place in the stream), so the loader resumes anywhere and all variants see the
  same data. Validation is a fixed set of the longest training length, drawn from a stream of its own.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from .loader import IGNORE
from .sampler import key_of

Task = Literal["copy", "recall"]
_TRAIN, _VALIDATION, _LENGTH = range(3)


def copy_rows(draw: np.random.Generator, rows: int, length: int, least: int, symbols: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets (rows, length): n symbols, the separator (token `symbols`), the symbols again.

    Each row has its own n between `least` // 2 and (length − 1) // 2; what is left over is the separator, with no
    target.
    """
    most = (length - 1) // 2
    text = np.full((rows, length + 1), symbols, dtype=np.int64)
    predicted = np.zeros((rows, length + 1), dtype=bool)
    for row, n in enumerate(draw.integers(min(max(1, least // 2), most), most + 1, rows)):
        drawn = draw.integers(0, symbols, n)
        text[row, :n], text[row, n + 1 : 2 * n + 1] = drawn, drawn
        predicted[row, n + 1 : 2 * n + 1] = True
    return _shifted(text, predicted)


def recall_rows(draw: np.random.Generator, rows: int, length: int, least: int, symbols: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets (rows, length): P pairs (key, value), then P pairs in another order, the values predicted.

    Keys are the first half of the symbols, without repetition within a row, values the second half; each row has its
    own P between `least` // 4 and length // 4. What is left over is the separator (token `symbols`).
    """
    keys, most = symbols // 2, length // 4
    text = np.full((rows, length + 1), symbols, dtype=np.int64)
    predicted = np.zeros((rows, length + 1), dtype=bool)
    for row, pairs in enumerate(draw.integers(min(max(1, least // 4), most), most + 1, rows)):
        key = draw.permutation(keys)[:pairs]
        both = np.stack([key, draw.integers(keys, symbols, pairs)], axis=1)
        text[row, : 2 * pairs] = both.ravel()
        text[row, 2 * pairs : 4 * pairs] = both[draw.permutation(pairs)].ravel()
        predicted[row, 2 * pairs + 1 : 4 * pairs : 2] = True
    return _shifted(text, predicted)


def _shifted(text: np.ndarray, predicted: np.ndarray) -> tuple[Tensor, Tensor]:
    targets = np.where(predicted, text, IGNORE)[:, 1:]
    return torch.from_numpy(text[:, :-1].copy()), torch.from_numpy(targets.copy())


class SyntheticDataModule(LightningDataModule):
    """Batches `{"tokens": (b, s), "targets": (b, s)}` int64 of an artificial task; targets are −100 where nothing is
    to be predicted.

    Args:
        task: "copy" or "recall".
        context_length: longest sequence in training, and the length in validation.
        min_length: shortest sequence in training.
        batch_size: sequences in a batch, on each rank.
        symbols: size of the alphabet; recall needs twice as many as a sequence has keys (length // 4).
        val_batches: batches of the validation set.
        batches_per_epoch: an epoch's length, for those who count epochs.
        seed: of the stream of training batches; independent of the global seed and of the validation set.

    Attributes:
        vocab_size: symbols and the separator.

    Raises:
        ValueError: sizes that do not fit together.
    """

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
        if task not in get_args(Task):
            raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(get_args(Task))}")
        sizes = {"batch_size": batch_size, "val_batches": val_batches, "batches_per_epoch": batches_per_epoch}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if not 4 <= min_length <= context_length:
            raise ValueError(f"min_length {min_length} must lie between 4 and context_length {context_length}")
        self.save_hyperparameters(logger=False)
        self.task, self.context_length, self.min_length, self.batch_size = task, context_length, min_length, batch_size
        self.symbols, self.val_batches, self.batches_per_epoch = symbols, val_batches, batches_per_epoch
        self.seed, self.vocab_size = seed, symbols + 1
        self._check(context_length)

    def _check(self, length: int) -> None:
        needed = 2 * (length // 4) if self.task == "recall" else 2
        if self.symbols < needed:
            raise ValueError(
                f"{self.task} at length {length} needs at least {needed} symbols (half of them keys), got "
                f"{self.symbols}"
            )

    def batch(self, stream: int, place: int, rank: int = 0, *, length: int, least: int) -> dict[str, Tensor]:
        """Batch number `place` of a stream: a pure function of the arguments and, in training, the seed."""
        seed = self.seed if stream == _TRAIN else 0
        draw = np.random.default_rng([key_of(seed, stream, place), rank, length])
        make = copy_rows if self.task == "copy" else recall_rows
        tokens, targets = make(draw, self.batch_size, length, least, self.symbols)
        return {"tokens": tokens, "targets": targets}

    def train_dataloader(self) -> "Stream":
        """An endless stream that goes on from the trainer's count of batches."""
        return Stream(self, _TRAIN, self.batches_per_epoch, self._rank(), self._trained if self.trainer else None)

    def val_dataloader(self) -> "Stream":
        """The same `val_batches` batches of full length every time."""
        return Stream(self, _VALIDATION, self.val_batches, self._rank())

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

    def _rank(self) -> int:
        known = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return known["rank"] if known else 0

    def _trained(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return progress.processed


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
