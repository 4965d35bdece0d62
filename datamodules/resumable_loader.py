"""Exact resume for anybody's dataset: a loader whose next batch follows from the number of batches trained on.

- Lightning starts an ordinary DataLoader at the beginning of the epoch when a run is resumed in its middle, so rows
  come twice and others not at all. Here the place is what the Trainer counts and checkpoints hold: batch k of a run is
  the same batch whether the run was interrupted or not, with any number of workers.
- Epoch e is a permutation drawn from (seed, e): no generator's state has to be kept.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from cubelet.common.checks import check_at_least
from cubelet.common.lightning_internals import trained_batches
from cubelet.common.seeds import derive_seed


class ResumableLoader:
    """Training batches of a map-style dataset, in an order and from a place that survive an interruption.

    Give it to a Trainer as any loader; rows are shared out over ranks (no DistributedSampler is needed), and what is
    left of an epoch when the last whole batch of all ranks was taken is dropped.

    Args:
        dataset: has `__len__` and `__getitem__`.
        batch_size: rows of one rank's batch.
        trainer: counts the batches trained on (`self.trainer` in a LightningModule or data module); None in a loop of
            your own, where saving and loading `state_dict` moves the place.
        seed: of the order.
        shuffle: draw each epoch's order anew; otherwise it is that of the dataset.
        options: of torch's DataLoader, such as num_workers, collate_fn, pin_memory.

    Raises:
        ValueError: fewer rows than a batch of all ranks takes.

    Example:
        >>> loader = ResumableLoader(range(10), batch_size=4, shuffle=False)
        >>> [batch.tolist() for batch in loader]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    def __init__(
        self, dataset: Any, batch_size: int, trainer: Any = None, *, seed: int = 0, shuffle: bool = True, **options: Any
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        self.dataset, self.batch_size, self.seed, self.shuffle, self.options = (
            dataset,
            batch_size,
            seed,
            shuffle,
            options,
        )
        self.rank, self.ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        self._trained: Callable[[], int] | None = None if trainer is None else lambda: trained_batches(trainer)
        self._place = 0
        if not len(self):
            raise ValueError(
                f"the dataset has {len(dataset)} rows, fewer than one batch of {batch_size} for each of {self.ranks} "
                "ranks takes; lower batch_size"
            )

    def __len__(self) -> int:
        """Batches of an epoch, for each rank."""
        return len(self.dataset) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[Any]:
        # As a generator it reads the place at the first `next`: Lightning settles its counts after making the iterator.
        self._place = self._place if self._trained is None else self._trained()
        # Under a Trainer an iteration goes on until that has had enough: an epoch that was resumed in its middle, or
        # that `limit_train_batches` made shorter, ends elsewhere.
        rest = len(self) - self._place % len(self) if self._trained is None else len(self)
        rows = [list(self.rows(place)) for place in range(self._place, self._place + rest)]
        for batch in DataLoader(self.dataset, batch_sampler=rows, **self.options):
            self._place += 1
            yield batch

    def rows(self, place: int) -> Sequence[int]:
        """Return the rows of this rank's batch number `place` since the run began."""
        epoch, index = divmod(place, len(self))
        first = (index * self.ranks + self.rank) * self.batch_size
        order = self._order(epoch)
        return [order[i] for i in range(first, first + self.batch_size)]

    def _order(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(len(self.dataset))
        if getattr(self, "_drawn", (None,))[0] != epoch:
            order = list(range(len(self.dataset)))
            random.Random(derive_seed(self.seed, "rows", epoch)).shuffle(order)
            self._drawn = (epoch, order)
        return self._drawn[1]

    def state_dict(self) -> dict[str, int]:
        """Return the place, and what the order depends on; the same on every rank."""
        place = self._place if self._trained is None else self._trained()
        return {"batches": place, "seed": self.seed, "rows": len(self.dataset), "batch": self.batch_size * self.ranks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state` was saved; warn where the order is another by now."""
        now = self.state_dict()
        changed = [f"{k} {state[k]} → {now[k]}" for k in ("seed", "rows", "batch") if state[k] != now[k]]
        if changed:
            warnings.warn(
                f"the training data changed since the checkpoint ({', '.join(changed)}): batches differ from those of "
                "an uninterrupted run",
                stacklevel=2,
            )
        self._place = state["batches"]
