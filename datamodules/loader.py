"""From offsets to batches of text: a batch is read row by row from the token files, in an order of `sampler.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .documents import DocumentIndex, DocumentMode
from .ordered_loader import OrderedLoader, ResumableOrderedLoader
from .sampler import TrainingWindows, ValidationWindows
from .token_array import TokenArray, TokenFile

IGNORE = -100


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of tokens that lie in files.

    Args:
        tokens: an array in files, or the path of a `.npy` file; opened anew in every process.
        context_length: tokens a window predicts.
        documents: where documents begin, for `mode` "pack" and "crop"; None where all is one document.
        mode: "join", documents are one text; "pack", they are, but a batch says which token belongs to which and
            nothing is predicted across them; "crop", a window lies within one document.

    Indexed by an array (b,) of offsets ("crop": of window numbers), gives `tokens` and `targets`, each (b,
    context_length) int64, and with "pack" `documents` (b, context_length) int64, numbered from 0 in each row. What lies
    past the end of the text or document has token 0 and target −100.

    Example:
        >>> np.save("tokens.npy", np.arange(40, dtype=np.uint16))
        >>> windows = WindowDataset(Path("tokens.npy"), context_length=4)
        >>> windows[np.array([0, 10])]["targets"].tolist()
        [[1, 2, 3, 4], [11, 12, 13, 14]]
    """

    def __init__(
        self,
        tokens: TokenArray | Path,
        context_length: int,
        *,
        documents: DocumentIndex | None = None,
        mode: DocumentMode = "join",
    ) -> None:
        self.tokens = tokens if isinstance(tokens, TokenArray) else TokenArray([TokenFile.npy(Path(tokens))])
        self.context_length, self.mode = context_length, mode
        self.documents = documents
        self._index = documents or DocumentIndex([(0, np.zeros(1, np.int64))], len(self.tokens))
        self.crops = self._index.crops(context_length) if mode == "crop" else None

    def __len__(self) -> int:
        """Number of tokens in the text."""
        return len(self.tokens)

    @property
    def windows(self) -> int | None:
        """Number of windows where they were cut beforehand ("crop"), else None."""
        return None if self.crops is None else self.crops.count

    def __getitem__(self, offsets: np.ndarray) -> dict[str, Tensor]:
        rows, length = len(offsets), self.context_length
        window = np.zeros((rows, length + 1), dtype=np.int64)
        inside = np.full(rows, length + 1)  # tokens of each row that are there
        documents = np.zeros((rows, length + 1), dtype=np.int64) if self.mode == "pack" else None
        for row, offset in enumerate(offsets.tolist()):
            start, longest = (offset, length + 1) if self.crops is None else self.crops.find(offset)
            taken = self.tokens.read(start, longest)
            window[row, : len(taken)] = taken
            inside[row] = len(taken)
            if documents is not None:
                documents[row, self._index.starts_between(start + 1, start + len(taken)) - start] = 1
        targets = window[:, 1:].copy()
        if inside.min() <= length:
            # A row's last token predicts nothing once its target is gone, but it is real text: it stays.
            targets[np.arange(1, length + 1) >= inside[:, None]] = IGNORE
        batch = {"tokens": torch.from_numpy(window[:, :-1].copy()), "targets": torch.from_numpy(targets)}
        if documents is not None:
            targets[documents[:, 1:] == 1] = IGNORE  # the first token of a document follows from nothing before it
            batch["documents"] = torch.from_numpy(documents.cumsum(1)[:, :-1].copy())
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "context_length": self.context_length,
            "documents": self.documents,
            "mode": self.mode,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class WindowLoader(OrderedLoader):
    """Batches of windows in a fixed order, the same whenever it is iterated.

    Args:
        windows: the text.
        order: which of its windows make which batch; knows rank and world size.
        num_workers: processes that gather ahead; 0 gathers in this one, which is fast enough for most models.
        pin_memory: page-locked batches, for a GPU.

    Example:
        >>> from cubelet.datamodules import ValidationWindows
        >>> np.save("tokens.npy", np.arange(33, dtype=np.uint16))
        >>> windows = WindowDataset(Path("tokens.npy"), context_length=8)
        >>> len(WindowLoader(windows, ValidationWindows(33, 8, batch_size=2)))
        2
    """

    def __init__(
        self,
        windows: WindowDataset,
        order: TrainingWindows | ValidationWindows,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(windows, order, num_workers=num_workers, pin_memory=pin_memory)

    @property
    def windows(self) -> WindowDataset:
        """The text."""
        return self.dataset

    @property
    def batch_size(self) -> int:
        """Rows of a batch on this rank."""
        return self.order.batch_size


class TrainingLoader(ResumableOrderedLoader, WindowLoader):
    """A place in the endless stream of training batches of windows; see `ResumableOrderedLoader`.

    Args:
        windows, order, num_workers, pin_memory: as for `WindowLoader`.
        trained: how many batches have been trained on since the run began, where somebody else counts. A batch that was
            handed out, but whose step an exception interrupted, is not among them and comes again after resuming.

    Example:
        >>> from cubelet.datamodules import TrainingWindows
        >>> np.save("tokens.npy", np.arange(100, dtype=np.uint16))
        >>> loader = TrainingLoader(WindowDataset(Path("tokens.npy"), 8), TrainingWindows(100, 8, 2, seed=0))
        >>> batches = iter(loader)
        >>> next(batches)["tokens"].shape
        torch.Size([2, 8])
    """
