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
    """Batches of windows in a fixed order, the same whenever it is iterated.

    Not a `DataLoader` but an iterable around one, so that Lightning neither replaces the sampler nor gives advice on
    it.

    Args:
        windows: the text.
        order: which of its windows make which batch; knows rank and world size.
        num_workers: processes that gather ahead; 0 gathers in this one, which is fast enough for most models.
        pin_memory: page-locked batches, for a GPU.
    """

    def __init__(
        self,
        windows: WindowDataset,
        order: TrainingWindows | ValidationWindows,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.windows, self.order = windows, order
        # A generator of its own: a DataLoader otherwise draws from the global one whenever an iteration begins.
        self._loader: DataLoader[dict[str, Tensor]] = DataLoader(
            windows,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )

    @property
    def batch_size(self) -> int:
        """Rows of a batch on this rank."""
        return self.order.batch_size

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator, so that workers start with the first batch: Lightning makes iterators that it never uses.
        yield from self._loader


class TrainingLoader(WindowLoader):
    """A place in the endless stream of training batches: iterating goes on from it, saving and loading moves it.

    The place is a number of batches, from which epoch and index follow; so nothing depends on how often, or in what
    state, an iterator was made. In a plain loop an iteration ends with the epoch. Under a Trainer, whose count of
    trained batches is the place, an iteration goes on for as long as Lightning wants: with `limit_train_batches` its
    epochs are shorter, and the next one continues the pass over the text.

    Args:
        windows, order, num_workers, pin_memory: as for `WindowLoader`.
        trained: how many batches have been trained on since the run began, where somebody else counts. A batch that was
            handed out, but whose step an exception interrupted, is not among them and comes again after resuming.
    """

    order: TrainingWindows

    def __init__(
        self,
        windows: WindowDataset,
        order: TrainingWindows,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        trained: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(windows, order, num_workers=num_workers, pin_memory=pin_memory)
        self._trained, self._place = trained, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # As a generator it reads the place at the first `next`: Lightning settles its counts after making the iterator.
        self._place = self._place if self._trained is None else self._trained()
        rest = len(self) - self._place % len(self) if self._trained is None else len(self)
        self.order.span = range(self._place, self._place + rest)
        for batch in self._loader:
            self._place += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches trained on, and what the order depends on; the same on every rank."""
        return {"batches": self._place if self._trained is None else self._trained(), **self.order.signature()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to where `state` was saved; warns where the order of windows is another by now."""
        now = self.order.signature()
        changed = [f"{name} {state.get(name)} → {value}" for name, value in now.items() if state.get(name) != value]
        if changed:
            warnings.warn(
                f"the order of the training data changed since the checkpoint ({', '.join(changed)}): batches differ "
                "from those of an uninterrupted run",
                stacklevel=2,
            )
        self._place = state["batches"]
