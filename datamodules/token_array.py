"""Tokens on disk as one long array, whatever the number of files they lie in.

- Windows are read with `preadv` into the batch: a memory map would count every page it ever touched as memory of the
  process, and a file that was cut short would kill the process instead of raising.
- Whoever wants an array gets one by indexing, from memory maps that are made when they are first used.
- Files hold raw little-endian unsigned integers from some byte on: `.npy` of this project's cache, nanoGPT's and
  Megatron's `.bin`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.errors import UnreadableFileError

OPEN_FILES = 256  # a process may mostly have 1,024


@dataclass(frozen=True)
class TokenFile:
    """Part of a file: `length` tokens of a type (`uint16`, …) from a byte on."""

    path: Path
    dtype: str
    first_byte: int
    length: int

    @classmethod
    def npy(cls, path: Path) -> "TokenFile":
        """A one-dimensional `.npy` file of integers.

        Raises:
            ValueError: something else.
        """
        try:
            whole = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no whole .npy file of tokens ({error})") from error
        if whole.ndim != 1 or whole.dtype.kind not in "ui" or not whole.dtype.isnative:
            raise ValueError(
                f"{path} holds {whole.dtype} of shape {whole.shape}; tokens are one-dimensional native integers"
            )
        return cls(path, whole.dtype.name, int(getattr(whole, "offset", 0)), len(whole))

    def part(self, start: int, stop: int) -> "TokenFile":
        """Tokens start … stop−1 of these."""
        size = np.dtype(self.dtype).itemsize
        return TokenFile(self.path, self.dtype, self.first_byte + start * size, stop - start)


class TokenArray:
    """The tokens of some files, one after the other. Travels to worker processes by the files' names.

    Args:
        files: at least one.

    Raises:
        UnreadableFileError: a file that is shorter than it should be, when it is opened or read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.arange(5, dtype=np.uint8)); np.save(folder / "b.npy", np.arange(5, 9))
        >>> tokens = TokenArray([TokenFile.npy(folder / "a.npy"), TokenFile.npy(folder / "b.npy")])
        >>> len(tokens), tokens[3:7].tolist(), tokens[np.array([[0, 8]])].tolist()
        (9, [3, 4, 5, 6], [[0, 8]])
    """

    def __init__(self, files: Sequence[TokenFile]) -> None:
        self.files = list(files)
        self._ends = np.cumsum([file.length for file in self.files])
        self._descriptors: dict[int, int] = {}  # of the files that were read last
        self._maps: list[np.ndarray | None] = [None] * len(self.files)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.files else 0

    @property
    def dtype(self) -> np.dtype:
        """Type wide enough for all files."""
        return np.result_type(*[file.dtype for file in self.files])

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start … start + length − 1, a copy (length,); fewer past the end."""
        stop = min(start + length, len(self))
        number = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        while start < stop:
            base = int(self._ends[number]) - self.files[number].length
            until = min(stop, int(self._ends[number]))
            parts.append(self._read_file(number, start - base, until - start))
            start, number = until, number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, self.dtype)])

    def __getitem__(self, places: Any) -> np.ndarray:
        """Tokens at a slice, or at an integer array of any shape, as from a numpy array."""
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            return self.read(start, max(0, stop - start))[::step] if step > 0 else self[np.arange(start, stop, step)]
        places = np.asarray(places)
        places = np.where(places < 0, places + len(self), places)
        if places.size and not (places.min() >= 0 and places.max() < len(self)):
            raise IndexError(f"places {places.min()} … {places.max()} reach outside of {len(self)} tokens")
        out = np.empty(places.shape, self.dtype)
        numbers = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(numbers):
            here = numbers == number
            base = int(self._ends[number]) - self.files[number].length
            out[here] = self._map(int(number))[places[here] - base]
        return out

    def whole(self) -> np.ndarray:
        """All of it as one array: memory-mapped where it lies in one file."""
        filled = [number for number, file in enumerate(self.files) if file.length]
        return self._map(filled[0]) if len(filled) == 1 else self.read(0, len(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(0, len(self)), dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"])

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def _read_file(self, number: int, start: int, length: int) -> np.ndarray:
        file = self.files[number]
        if not hasattr(os, "preadv"):  # Windows
            return np.array(self._map(number)[start : start + length])
        if (descriptor := self._descriptors.get(number)) is None:
            if len(self._descriptors) >= OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                descriptor = self._descriptors[number] = os.open(file.path, os.O_RDONLY)
            except OSError as error:
                raise UnreadableFileError(f"{file.path} cannot be read: {error.strerror}") from error
        out = np.empty(length, file.dtype)
        view, at = out.data.cast("B"), file.first_byte + start * out.itemsize
        while view:  # a single call gives at most 2 GiB
            got = os.preadv(descriptor, [view], at)
            if not got:
                raise UnreadableFileError(
                    f"{file.path} ends at byte {at}, in the middle of its tokens; it was cut short"
                )
            view, at = view[got:], at + got
        return out

    def _map(self, number: int) -> np.ndarray:
        if (mapped := self._maps[number]) is None:
            file = self.files[number]
            try:
                mapped = np.memmap(file.path, file.dtype, "r", file.first_byte, (file.length,))
            except ValueError as error:
                raise UnreadableFileError(f"{file.path} is too short for its {file.length} tokens ({error})") from error
            self._maps[number] = mapped
        return mapped


def concatenate(arrays: Sequence[TokenArray]) -> TokenArray:
    """One array of several, without a copy."""
    return TokenArray([file for array in arrays for file in array.files if file.length])
