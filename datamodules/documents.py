"""Where documents begin among the tokens, and the windows that lie within one document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

DocumentMode = Literal["join", "pack", "crop"]


class DocumentIndex:
    """Places at which documents begin, of one corpus or of several that lie one after the other.

    Args:
        parts: (first token, sorted places (documents,) counted from there) of each corpus; an array may be
            memory-mapped.
        length: tokens of all of them.

    Example:
        >>> index = DocumentIndex([(0, np.array([0, 5])), (8, np.array([0, 3]))], 14)
        >>> index.starts_between(4, 12).tolist()
        [5, 8, 11]
    """

    def __init__(self, parts: Sequence[tuple[int, np.ndarray]], length: int) -> None:
        self.parts, self.length = list(parts), length
        self._bases = np.array([base for base, _ in self.parts])

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """First tokens of documents at start … stop − 1."""
        first = max(0, int(np.searchsorted(self._bases, start, side="right")) - 1)
        found = []
        for base, starts in self.parts[first:]:
            if base >= stop:
                break
            a, b = np.searchsorted(starts, (start - base, stop - base))
            found.append(np.asarray(starts[a:b]) + base)
        return np.concatenate(found or [np.empty(0, np.int64)])

    def crops(self, context_length: int) -> "Crops":
        """The windows of `context_length` predicted tokens, or of what is left, within the documents."""
        starts = np.concatenate([np.asarray(starts) + base for base, starts in self.parts])
        return Crops(starts, np.append(starts[1:], self.length), context_length)


@dataclass
class Crops:
    """Windows within documents: end to end, the last of a document shorter, a document of one token has none.

    Args:
        starts, stops: (documents,) int64.
        context_length: tokens a window predicts.
    """

    starts: np.ndarray
    stops: np.ndarray
    context_length: int

    def __post_init__(self) -> None:
        self._ends = np.cumsum(-(-np.maximum(self.stops - self.starts - 1, 0) // self.context_length))

    @property
    def count(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def before(self, token: int) -> int:
        """Windows in the documents that begin before a token."""
        documents = int(np.searchsorted(self.starts, token))
        return int(self._ends[documents - 1]) if documents else 0

    def find(self, number: int) -> tuple[int, int]:
        """First token of a window and how many it has, the last of them only to be predicted; (0, 0) past the end."""
        if number >= self.count:
            return 0, 0
        document = int(np.searchsorted(self._ends, number, side="right"))
        in_document = number - (int(self._ends[document - 1]) if document else 0)
        start = int(self.starts[document]) + in_document * self.context_length
        return start, min(self.context_length + 1, int(self.stops[document]) - start)
