"""From offsets to batches, and a loader that can stop anywhere and go on as if it had not.

A batch is one gather from a memory-mapped array; the sampler hands whole batches of offsets to the workers, so they
hold no state and what they have prefetched does not count: the loader's state is the number of batches handed out.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .sampler import TrainingWindows, ValidationWindows

IGNORE = -100


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of a token file.

    Args:
        path: a `.npy` file of unsigned integers, one dimension; opened memory-mapped, and anew in every process.
        context_length: tokens a window predicts.

    Indexed by an array of offsets (b,), gives `tokens` and `targets`, each (b, context_length) int64. What lies past
    the end of the text has token 0 and target −100.
    """

    def __init__(self, path: Path, context_length: int) -> None:
        self.path, self.context_length = path, context_length
        self.tokens = np.load(path, mmap_mode="r")
        self._reach = np.arange(context_length + 1)

    def __len__(self) -> int:
        """Number of tokens in the text."""
        return len(self.tokens)

    def __getitem__(self, offsets: np.ndarray) -> dict[str, Tensor]:
        places = offsets[:, None] + self._reach
        if places[:, -1].max() < len(self.tokens):
            window = torch.from_numpy(self.tokens[places].astype(np.int64))
            return {"tokens": window[:, :-1].contiguous(), "targets": window[:, 1:].contiguous()}
        inside = places < len(self.tokens)
        taken = self.tokens[np.where(inside, places, 0)].astype(np.int64)
        targets = np.where(inside, taken, IGNORE)[:, 1:]
        # A row's last token predicts nothing once its target is gone, but it is real text: it stays.
        return {"tokens": torch.from_numpy(np.where(inside, taken, 0)[:, :-1]), "targets": torch.from_numpy(targets)}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "context_length": self.context_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class WindowLoader:
    """Batches of windows, resumable in the middle of an epoch.

    Not a `DataLoader` but an iterable around one, so that Lightning neither replaces the sampler nor gives advice on
    it. Lightning calls `sampler.set_epoch`, and keeps `state_dict()` with its loops' state.

    Args:
        windows: the windows.
        sampler: which of them; knows rank and world size.
        num_workers: processes that gather ahead; 0 gathers in this one, which is fast enough for most models.
        pin_memory: page-locked batches, for a GPU.
        finished: how many batches of this epoch have been trained on, where somebody counts. A batch that was handed
            out, but whose step an exception interrupted, is then handed out again after resuming.

    An iteration begins, when its first batch is asked for, at the epoch of the sampler: where `load_state_dict` left
    off if it was in that epoch, at the first batch otherwise. An epoch iterated to its end is followed by the next one,
    unless `set_epoch` says otherwise.
    """

    def __init__(
        self,
        windows: WindowDataset,
        sampler: TrainingWindows | ValidationWindows,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        finished: Callable[[], int] | None = None,
    ) -> None:
        self.windows, self.sampler, self._finished = windows, sampler, finished
        # A generator of its own: a DataLoader otherwise draws from the global one whenever an iteration begins.
        self._loader: DataLoader[dict[str, Tensor]] = DataLoader(
            windows,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        self._epoch, self._handed_out, self._resume_at = 0, 0, 0

    @property
    def batch_size(self) -> int:
        """Rows of a batch on this rank."""
        return self.sampler.batch_size

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever in it the loader stands."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator on purpose: nothing happens until the first `next`. Lightning makes the first iterator of a run
        # before it has said which epoch it is in, and throws some iterators away unused.
        start = self._resume_at if self.sampler.epoch == self._epoch else 0
        self._epoch, self._handed_out, self._resume_at = self.sampler.epoch, start, 0
        self.sampler.start = start
        for batch in self._loader:
            self._handed_out += 1
            yield batch
        if self.sampler.epoch == self._epoch:
            self.sampler.set_epoch(self._epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches of it that are done with, and what the order depends on; the same on every rank."""
        done = self._handed_out if self._finished is None else min(self._handed_out, self._finished())
        return {"epoch": self._epoch, "batches": done, **self.sampler.order()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the last batch that `state` counts; warns where the order of windows is another by now."""
        now = self.sampler.order()
        changed = [f"{name} {state.get(name)} → {value}" for name, value in now.items() if state.get(name) != value]
        if changed:
            warnings.warn(
                f"The order of the training data changed since the checkpoint ({', '.join(changed)}): batches differ "
                "from those of an uninterrupted run.",
                stacklevel=2,
            )
        epoch, batches = state["epoch"], state["batches"]
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        self._epoch, self._handed_out, self._resume_at = epoch, batches, batches
        self.sampler.set_epoch(epoch)
