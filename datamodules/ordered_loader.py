"""Batches in an order that is known beforehand, and a training loader that can stop anywhere and go on as before.

The order hands whole batches to the workers (offsets, or indices), so they hold no state and what they have prefetched
does not count: the loader's state is the number of batches handed out.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader


class OrderedLoader:
    """Batches in a fixed order, the same whenever it is iterated.

    Not a `DataLoader` but an iterable around one, so that Lightning neither replaces the sampler nor gives advice on
    it.

    Args:
        dataset: indexed by what `order` yields, gives a whole batch.
        order: what makes up which batch; knows rank and world size.
        num_workers: processes that gather ahead; 0 gathers in this one.
        pin_memory: page-locked batches, for a GPU.

    Example:
        >>> squares = {(1, 2): [1, 4], (3,): [9]}
        >>> list(OrderedLoader(squares, [(1, 2), (3,)]))
        [[1, 4], [9]]
    """

    def __init__(self, dataset: Any, order: Any, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset: Any = dataset
        self.order: Any = order
        # A generator of its own: a DataLoader otherwise draws from the global one whenever an iteration begins.
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that workers start with the first batch: Lightning makes iterators that it never uses.
        yield from self._loader


class ResumableOrder(Protocol):
    """An endless stream of batches, of which it yields a `span`."""

    span: range
    """Places of the stream that the next iteration yields."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """What the dataset is indexed by, for each batch of the span."""
        ...

    def signature(self) -> dict[str, Any]:
        """What the order depends on besides the place; ranks do not matter, only their number does."""
        ...


class ResumableOrderedLoader(OrderedLoader):
    """A place in the endless stream of training batches: iterating goes on from it, saving and loading moves it.

    The place is a number of batches, from which epoch and index follow; so nothing depends on how often, or in what
    state, an iterator was made. In a plain loop an iteration ends with the epoch. Under a Trainer, whose count of
    trained batches is the place, an iteration goes on for as long as Lightning wants: with `limit_train_batches` its
    epochs are shorter, and the next one continues the pass over the data.

    Args:
        dataset, order, num_workers, pin_memory: as for `OrderedLoader`; the order is a `ResumableOrder`.
        trained: how many batches have been trained on since the run began, where somebody else counts. A batch that was
            handed out, but whose step an exception interrupted, is not among them and comes again after resuming.

    Example:
        >>> import numpy as np
        >>> from cubelet.datamodules import TrainingWindows
        >>> loader = ResumableOrderedLoader(np.arange(100), TrainingWindows(100, 8, batch_size=2, seed=0))
        >>> next(iter(loader)).shape, loader.state_dict()["batches"]  # where two windows begin
        (torch.Size([2]), 1)
    """

    def __init__(
        self,
        dataset: Any,
        order: ResumableOrder,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        trained: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(dataset, order, num_workers=num_workers, pin_memory=pin_memory)
        self._trained, self._place = trained, 0

    def __iter__(self) -> Iterator[Any]:
        # As a generator it reads the place at the first `next`: Lightning settles its counts after making the iterator.
        self._place = self._place if self._trained is None else self._trained()
        rest = len(self) - self._place % len(self) if self._trained is None else len(self)
        self.order.span = range(self._place, self._place + rest)
        for batch in self._loader:
            self._place += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Batches trained on, and what the order depends on; the same on every rank."""
        return {"batches": self._place if self._trained is None else self._trained(), **self.order.signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was saved; warn where the order is another by now."""
        now = self.order.signature()
        changed = [f"{name} {state.get(name)} → {value}" for name, value in now.items() if state.get(name) != value]
        if changed:
            warnings.warn(
                f"the order of the training data changed since the checkpoint ({', '.join(changed)}): batches differ "
                "from those of an uninterrupted run",
                stacklevel=2,
            )
        self._place = state["batches"]
