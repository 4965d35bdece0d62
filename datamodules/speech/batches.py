"""Which utterances make up which batch: buckets by length, as a pure function of (seed, epoch, rank, index).

**Training.** An epoch sorts the utterances by length, jittered by (seed, epoch, utterance), cuts the sorted list from
its long end into batches whose *padded* seconds stay within a bound, and visits the batches in random order. Nothing
is stored: the plan of an epoch follows from (seed, epoch), so resuming at any index costs one sort. Every epoch has
the same number of batches; where its cut gives a batch more or less, one is left out or comes twice.

The largest batch stands first in epoch 0: where memory is too small, the first step says so.

**Several processes.** `world_size` neighbouring batches of the cut, of nearly equal length, are one step; rank r takes
the r-th.

**Validation.** The same batches every time, from the longest to the shortest, every utterance once. Where ranks would
get unequal numbers of batches, the last ones come again with `repeated` set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from cubelet.common.seeds import derive_key, hash_uint64

JITTER = 0.1  # of the length: neighbours change from epoch to epoch, padding stays below a tenth


@dataclass(frozen=True)
class SpeechBatch:
    """Indices (b,) of a batch's utterances, and the place of the batch in the stream.

    Attributes:
        repeated: it stands here only so that all ranks have as many; not to be measured.
    """

    indices: np.ndarray
    place: int
    repeated: bool = False


def uniform(key: int, count: int) -> np.ndarray:
    """Return numbers (count,) in [0, 1) that follow from a key."""
    return hash_uint64(np.arange(count, dtype=np.uint64), key) / 2.0**64


def cut_batches(samples: np.ndarray, order: np.ndarray, batch_samples: int) -> list[np.ndarray]:
    """Cut `order` into consecutive batches of at most `batch_samples` padded samples, or of one utterance.

    Args:
        samples: (n,) length of each utterance.
        order: (m,) indices of utterances, about from the longest to the shortest.
        batch_samples: bound on rows × longest row.
    """
    batches, start = [], 0
    while start < len(order):
        longest = int(samples[order[start]])
        window = samples[order[start : start + max(1, 2 * batch_samples // max(1, longest))]]
        padded = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
        size = max(1, int(np.searchsorted(padded, batch_samples, side="right")))
        batches.append(order[start : start + size])
        start += size
    return batches


class TrainingBatches(Sampler[SpeechBatch]):
    """Yields one rank's batches of `span`, a range of places in the endless stream; at first that is epoch 0.

    Args:
        samples: (n,) length of each utterance.
        batch_samples: bound on the padded samples of a batch.
        seed: of the order.
        rank, world_size: this process and how many share a step.
        batches_per_epoch: None for one pass.
        repeat: start over after so many batches (for overfitting a few on purpose).
        shortest_first: epoch 0 goes from the shortest to the longest utterances, which shows CTC the way out of "all
            blank" (Amodei et al. 2016, https://arxiv.org/abs/1512.02595).

    Example:
        >>> order = TrainingBatches(np.array([400, 300, 200, 100]), batch_samples=800, seed=0)
        >>> [batch.indices.tolist() for batch in order]
        [[0, 1], [2, 3]]
    """

    def __init__(
        self,
        samples: np.ndarray,
        batch_samples: int,
        *,
        seed: int,
        shortest_first: bool = False,
        rank: int = 0,
        world_size: int = 1,
        batches_per_epoch: int | None = None,
        repeat: int | None = None,
    ) -> None:
        self.samples, self.batch_samples, self.seed = samples, batch_samples, seed
        self.rank, self.world_size, self.repeat = rank, world_size, repeat
        self.shortest_first = shortest_first
        one_pass = len(cut_batches(samples, np.argsort(-samples, kind="stable"), batch_samples)) // world_size
        self.batches_per_epoch = batches_per_epoch or max(1, one_pass)
        self.span = range(self.batches_per_epoch)
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    def signature(self) -> dict[str, int]:
        """What the order depends on besides the place. Ranks do not matter, only their number does."""
        return {
            "seed": self.seed,
            "utterances": len(self.samples),
            "samples": int(self.samples.sum()),
            "batch_samples": self.batch_samples,
            "world_size": self.world_size,
            "shortest_first": int(self.shortest_first),
            "batches_per_epoch": self.batches_per_epoch,
        }

    def __len__(self) -> int:
        """Batches in an epoch, on each rank."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[SpeechBatch]:
        for place in self.span:
            yield SpeechBatch(self.batch(place), place)

    def batch(self, place: int) -> np.ndarray:
        """Return the indices of this rank's batch at a place of the stream."""
        place = place % self.repeat if self.repeat else place
        epoch, index = divmod(place, self.batches_per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, self._plan_epoch(epoch))
        steps = self._plan[1]
        # Where an epoch is longer than a pass, the pass comes again.
        group = index % max(1, len(steps) // self.world_size)
        return steps[min(group * self.world_size + self.rank, len(steps) - 1)]

    def _plan_epoch(self, epoch: int) -> list[np.ndarray]:
        """Batches in the order of visits; each `world_size` of them are one step."""
        count = len(self.samples)
        factor = 1 + JITTER * (uniform(derive_key(self.seed, epoch, 0), count) - 0.5)
        order = np.argsort(-self.samples * factor, kind="stable")
        batches = cut_batches(self.samples, order, self.batch_samples)
        steps = max(1, len(batches) // self.world_size)
        visits = np.argsort(uniform(derive_key(self.seed, epoch, 1), steps), kind="stable")
        groups = [batches[s * self.world_size :][: self.world_size] for s in range(steps)]
        if epoch == 0 and self.shortest_first:
            visits = np.arange(steps)[::-1].copy()
        if epoch == 0:
            cost = [max(len(batch) * int(self.samples[batch].max()) for batch in group) for group in groups]
            largest = int(np.flatnonzero(visits == int(np.argmax(cost)))[0])
            visits[: largest + 1] = np.roll(visits[: largest + 1], 1)
        return [batch for step in visits for batch in groups[step]]


class ValidationBatches(Sampler[SpeechBatch]):
    """Yields one rank's batches of a split, every utterance on one rank once.

    Args: as `TrainingBatches`.

    Example:
        >>> [batch.indices.tolist() for batch in ValidationBatches(np.array([100, 300, 200]), 600)]
        [[1, 2], [0]]
    """

    def __init__(self, samples: np.ndarray, batch_samples: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.batches = cut_batches(samples, np.argsort(-samples, kind="stable"), batch_samples)

    def __len__(self) -> int:
        """Batches on each rank."""
        return -(-len(self.batches) // self.world_size)

    def __iter__(self) -> Iterator[SpeechBatch]:
        for step in range(len(self)):
            place = step * self.world_size + self.rank
            yield SpeechBatch(self.batches[min(place, len(self.batches) - 1)], place, place >= len(self.batches))
