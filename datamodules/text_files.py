"""Text out of files as people have them: compressed or not, with or without a byte-order mark, of any size.

A file is read in pieces; what it is, is told by its first bytes, not by its name. Line ends become line feeds, as when
Python opens a text file. A file that is no UTF-8 (or UTF-16 and UTF-32 with a byte-order mark) is refused with the
place of the first such byte, and with no guess at its encoding: a wrong one garbles the text without an error.
"""

import bz2
import codecs
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cubelet.common.errors import UnreadableFileError
from cubelet.common.optional_imports import import_optional

BYTES = 1 << 20  # read at a time
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_KINDS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"%PDF": "PDF",
}
_ADVICE = {
    "tar": "unpack it and name the folder",
    "PDF": "extract its text first",
    "parquet": "give it a name that ends with .parquet",
}
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


class NotTextError(UnreadableFileError):
    """A file that holds something else than text.

    Args:
        message: the sentence, with file and byte.
        kind: what it is, in a word or two, for counting: "binary", "not UTF-8", "empty", "unreadable".
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        return self.args[0]


def show(path: Path | str) -> str:
    """A file's name for a message, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes: gzip, xz, bzip2, zstd, zip, parquet, PDF, tar, or text."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "text")


@contextmanager
def open_plain(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A file's bytes, decompressed, and what they are (see `kind_of`).

    Raises:
        UnreadableFileError: the system does not hand it out, or its compressed data are damaged.
    """
    try:
        with path.open("rb") as raw:
            try:
                stream, kind = _unpack(raw)
                yield stream, kind
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                raise UnreadableFileError(
                    f"corpus: {show(path)} is damaged: {error} (before byte {raw.tell()})"
                ) from error
    except PermissionError as error:
        raise NotTextError(f"corpus: {show(path)} cannot be read: {error.strerror}", "unreadable") from error
    except UnreadableFileError:
        raise
    except OSError as error:
        reason = error.strerror or f"it is damaged ({error})"
        raise UnreadableFileError(f"corpus: {show(path)} cannot be read: {reason}") from error


def _unpack(raw: BinaryIO) -> tuple[BinaryIO, str]:
    """The bytes within a file that may be compressed, and what they are."""
    kind = kind_of(_peek(raw))
    if kind == "gzip":
        stream: Any = gzip.GzipFile(fileobj=raw)
    elif kind == "xz":
        stream = lzma.LZMAFile(raw)  # noqa: SIM115 (closed with the file below it)
    elif kind == "bzip2":
        stream = bz2.BZ2File(raw)
    elif kind == "zstd":
        arrow = import_optional("pyarrow", "data")
        stream = _Readable(arrow.CompressedInputStream(arrow.PythonFile(raw), "zstd"))
    else:
        return raw, kind
    plain = io.BufferedReader(stream, BYTES)
    return plain, kind_of(plain.peek(512)[:512])


class _Readable(io.RawIOBase):
    """A stream of pyarrow's as Python's `io` wants it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _peek(raw: BinaryIO) -> bytes:
    head = raw.read(512)
    raw.seek(0)
    return head


def decode(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text of a stream of bytes, in pieces, without a byte-order mark and with `\\n` as the end of lines.

    Raises:
        NotTextError: bytes that are no UTF-8, or a NUL byte, which no text has.
    """
    head = stream.read(BYTES)
    bom, encoding = next(((bom, encoding) for bom, encoding in _BOMS if head.startswith(bom)), (b"", "utf-8"))
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    data, place = head[len(bom) :], len(bom)
    while True:
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at, byte = place - held + error.start, error.object[error.start]
            if encoding == "utf-8" and b"\0" in error.object[:4096]:
                raise _binary(name, f"byte 0x{byte:02x} at offset {at}") from None
            raise NotTextError(
                f"corpus: {name} is not {encoding.upper()} text: byte 0x{byte:02x} at offset {at} ({error.reason}); "
                "convert it with iconv -f ENCODING -t UTF-8, where ENCODING is what it was written in",
                "not UTF-8",
            ) from None
        if encoding == "utf-8" and (nul := data.find(b"\0")) >= 0:
            raise _binary(name, f"a NUL byte at offset {place + nul}")
        if text := lines.decode(text, final=not data):
            yield text
        if not data:
            return
        place += len(data)
        data = stream.read(BYTES)


def _binary(name: str, what: str) -> NotTextError:
    hint = "a binary file, or UTF-16 without its byte-order mark"
    return NotTextError(f"corpus: {name} is not text: {what} ({hint})", "binary")


def read_file(path: Path) -> Iterator[str]:
    """The text of a file that holds text, compressed or not, in pieces.

    Raises:
        NotTextError: it holds something else. UnreadableFileError: it cannot be read.
    """
    with open_plain(path) as (stream, kind):
        if kind != "text":
            advice = _ADVICE.get(kind, "unpack it")
            raise NotTextError(f"corpus: {show(path)} holds {kind} data, not text; {advice}", "binary")
        yield from decode(stream, show(path))


def zip_members(path: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """(name, text in pieces) of the files in a zip archive, in the order of their names.

    Raises:
        UnreadableFileError: a damaged or encrypted archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(info.filename for info in archive.infolist() if not info.is_dir()):
                yield name, _member(archive, name, show(path))
    except (zipfile.BadZipFile, OSError) as error:
        if isinstance(error, UnreadableFileError):
            raise
        raise UnreadableFileError(f"corpus: {show(path)} is a zip archive that cannot be read: {error}") from error


def _member(archive: zipfile.ZipFile, name: str, shown: str) -> Iterator[str]:
    try:
        with archive.open(name) as stream:
            yield from decode(stream, f"{shown}:{name}")  # pyright: ignore[reportArgumentType]
    except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UnreadableFileError(f"corpus: {shown}:{name} cannot be unpacked: {error}") from error
