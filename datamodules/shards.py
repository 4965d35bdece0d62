"""Token files of the cache: written piece by piece, resumable after a kill, and noticed where they are damaged.

A shard is a `.npy` file, so that anything reads it. Its header is written when it is whole; until then a journal says
how far it is. Checksums of blocks are kept beside the shards: a few blocks are looked at whenever the cache is opened,
all of them where a file's size or times are not those it was written with.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .token_array import TokenArray, TokenFile

HEADER = 128  # bytes; numpy pads to a multiple of 64
SHARD_BYTES = 1 << 30
BLOCK = 1 << 20  # bytes of a checksum
SAMPLE = 24  # blocks of all shards together that are looked at on every opening, and one of each at least


class DamagedError(Exception):
    """Files of the cache that are not what was written."""


class ShardWriter:
    """Appends integers to `name-00000.npy`, `name-00001.npy`, … in a folder.

    Args:
        tokens_per_shard: integers of a file; None for about a gigabyte.
    """

    def __init__(self, folder: Path, name: str, dtype: Any, tokens_per_shard: int | None = None) -> None:
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self.per_shard = tokens_per_shard or SHARD_BYTES // self.dtype.itemsize
        self.length = 0
        self._file: Any = None

    def path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05}.npy"

    def go_on(self, length: int) -> None:
        """Continue after `length` integers, of which all are there; what was written behind them is dropped.

        Raises:
            DamagedError: they are not there.
        """
        number, rest = divmod(length, self.per_shard)
        for full in range(number):
            if not self.path(full).is_file() or self.path(full).stat().st_size != self._bytes(self.per_shard):
                raise DamagedError(f"{self.path(full)} is not whole")
        if rest:
            if not self.path(number).is_file() or self.path(number).stat().st_size < self._bytes(rest):
                raise DamagedError(f"{self.path(number)} is not whole")
            self._file = self.path(number).open("r+b")
            self._file.truncate(self._bytes(rest))
            self._file.seek(0, os.SEEK_END)
        for later in self.folder.glob(f"{self.name}-*.npy"):
            if int(later.stem.rpartition("-")[2]) >= number + bool(rest):
                later.unlink()
        self.length = length

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, dtype=self.dtype)
        while len(values):
            if self._file is None:
                self._file = self.path(self.length // self.per_shard).open("w+b")
                self._file.write(_header(self.dtype, self.per_shard))
            room = self.per_shard - self.length % self.per_shard
            self._file.write(values[:room].data)
            self.length += len(values[:room])
            if len(values) >= room:
                self._end_shard(self.per_shard)
            values = values[room:]

    def sync(self) -> None:
        """Bring all that was appended onto the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> list[TokenFile]:
        """Complete the last shard; the files, in order. An array without integers has one, too."""
        if self._file is None and not self.length:
            self._file = self.path(0).open("w+b")
            self._file.write(_header(self.dtype, 0))
        if self._file is not None:
            self._end_shard(self.length % self.per_shard or (0 if not self.length else self.per_shard))
        lengths = [self.per_shard] * (self.length // self.per_shard)
        if self.length % self.per_shard or not self.length:
            lengths.append(self.length % self.per_shard)
        return [TokenFile(self.path(n), self.dtype.name, HEADER, length) for n, length in enumerate(lengths)]

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_shard(self, length: int) -> None:
        self._file.seek(0)
        self._file.write(_header(self.dtype, length))
        self.sync()
        self._file.close()
        self._file = None

    def _bytes(self, length: int) -> int:
        return HEADER + length * self.dtype.itemsize


def _header(dtype: np.dtype, length: int) -> bytes:
    about = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({length},), }}".encode()
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + about.ljust(HEADER - 11) + b"\n"


def checksums(path: Path) -> np.ndarray:
    """CRC-32 of each block of a file, (blocks,) uint32."""
    out = []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            out.append(zlib.crc32(block))
    return np.array(out, dtype=np.uint32)


def count_blocks(described: list[dict[str, Any]]) -> int:
    """Number of checksums of files that `describe_files` described."""
    return sum(-(-file["size"] // BLOCK) for file in described)


def describe_files(files: Iterable[TokenFile]) -> list[dict[str, Any]]:
    """What has to be known of shards to open them again: plain data."""
    return [{"name": f.path.name, "dtype": f.dtype, "length": f.length, **_stat(f.path)} for f in files]


def _stat(path: Path) -> dict[str, Any]:
    about = path.stat()
    return {"size": about.st_size, "times": [about.st_mtime_ns, about.st_ctime_ns]}


def open_files(folder: Path, described: list[dict[str, Any]], expected: np.ndarray) -> tuple[TokenArray, bool]:
    """The array that `describe_files` described.

    Args:
        expected: checksums of all blocks of all these files.

    Returns:
        The array, and whether all was as described; otherwise a file's times were not, and its content was compared.

    Raises:
        DamagedError: something else than was written.
    """
    files, untouched, at = [], True, 0
    for about in described:
        path = folder / about["name"]
        try:
            now = _stat(path)
        except OSError as error:
            raise DamagedError(f"{about['name']} is not there ({error.strerror})") from error
        if now["size"] != about["size"]:
            raise DamagedError(f"{about['name']} has {now['size']} bytes of {about['size']}")
        blocks = expected[at : at + -(-now["size"] // BLOCK)]
        at += len(blocks)
        same = now["times"] == about["times"]
        _compare(path, blocks, _spread(len(blocks), SAMPLE // len(described) or 1) if same else range(len(blocks)))
        untouched = untouched and same
        files.append(TokenFile(path, about["dtype"], HEADER, about["length"]))
    return TokenArray(files), untouched


def _spread(count: int, sample: int) -> Iterable[int]:
    return np.unique(np.linspace(0, count - 1, min(count, sample)).astype(int)).tolist()


def _compare(path: Path, expected: np.ndarray, blocks: Iterable[int]) -> None:
    with path.open("rb") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            if zlib.crc32(file.read(BLOCK)) != expected[block]:
                raise DamagedError(f"{path.name} is not what was written, at byte {block * BLOCK} or soon after")
