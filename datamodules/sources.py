"""Where documents come from, one class a kind of place. What a name stands for is decided in `corpora.py`.

A source says what it would read without reading it (`signature`), and hands out its documents one after the other, each
in pieces, as often as it is asked and always in the same order.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cubelet.common.errors import MissingFileError, UnreadableFileError

from .row_files import dataset_rows, read_rows, table_kind
from .text_files import COMPRESSED, NotTextError, open_plain, read_file, show, zip_members

Document = tuple[str, Iterator[str]]  # its name and its text, in pieces


class Source:
    """Documents to learn from.

    Attributes:
        name: for messages and for the cache's folder.
        joined: whether the text is many documents, with a blank line between them, or one that is taken as it is.
        held_out: documents that are there to validate on, or None.
        left_out: {reason: (how many, the first one's name)}, filled while documents are read.
    """

    def __init__(self, name: str, *, joined: bool, held_out: "Source | None" = None) -> None:
        self.name, self.joined, self.held_out = name, joined, held_out
        self.left_out: dict[str, tuple[int, str]] = {}

    def signature(self) -> list[Any] | None:
        """Plain data that changes when the documents do, found without reading them; None where nothing tells."""
        raise NotImplementedError

    def has_changed(self) -> bool:
        """Whether a file is no longer what it was when it was looked up."""
        return False

    def size(self) -> int | None:
        """About how many characters there are, for a progress bar; None where only reading tells."""
        return None

    def documents(self) -> Iterator[Document]:
        """All documents. Pieces may raise `NotTextError`: whoever reads them then decides by `refuses`."""
        raise NotImplementedError

    def refuses(self, error: NotTextError) -> bool:
        """Whether a document that is no text is a fault; otherwise it is left out."""
        return True

    def leave_out(self, reason: str, name: str) -> None:
        count, first = self.left_out.get(reason, (0, name))
        self.left_out[reason] = (count + 1, first)


class TextSource(Source):
    """Text that is made when it is needed, such as a preset.

    Args:
        make: () → text.
        made_from: what decides about the text; see `Source.signature`.
    """

    def __init__(
        self, name: str, make: Callable[[], str], made_from: list[Any] | None, held_out: Source | None = None
    ) -> None:
        super().__init__(name, joined=False, held_out=held_out)
        self._make, self._made_from = make, made_from

    def signature(self) -> list[Any] | None:
        return self._made_from

    def documents(self) -> Iterator[Document]:
        yield self.name, iter([self._make()])


class RowSource(Source):
    """A dataset of the package `datasets`, a document a row.

    Args:
        dataset: `Dataset` or `IterableDataset`.
        text_field: column with the text.
        made_from: as for `TextSource`; None for what the dataset knows of itself.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        text_field: str | None,
        made_from: list[Any] | None,
        held_out: Source | None = None,
    ) -> None:
        super().__init__(name, joined=True, held_out=held_out)
        self._dataset, self._field, self._made_from = dataset, text_field, made_from

    def signature(self) -> list[Any] | None:
        if self._made_from is not None:
            return self._made_from
        # A dataset on disk is known by its fingerprint; one that streams may be another one every time.
        known = getattr(self._dataset, "_fingerprint", None) if hasattr(self._dataset, "__len__") else None
        return None if known is None else ["dataset", known, len(self._dataset), self._field]

    def documents(self) -> Iterator[Document]:
        for number, text in enumerate(dataset_rows(self._dataset, self._field)):
            yield f"row {number}", iter([text])


@dataclass(frozen=True, order=True)
class FoundFile:
    """A file below a folder, as the system describes it."""

    name: str  # relative, with "/" between folders
    size: int = field(compare=False)
    times: tuple[int, int] = field(compare=False)  # of the content and of the entry, in nanoseconds

    @classmethod
    def of(cls, name: str, about: os.stat_result) -> "FoundFile":
        return cls(name, about.st_size, (about.st_mtime_ns, about.st_ctime_ns))

    def signature(self) -> list[Any]:
        return [os.fsencode(self.name).hex(), self.size, *self.times]

    def is_still(self, path: Path) -> bool:
        """Whether the file at `path` is as it was."""
        try:
            now = path.stat()
        except OSError:
            return False
        return (self.size, self.times) == (now.st_size, (now.st_mtime_ns, now.st_ctime_ns))


class FileSource(Source):
    """A single file: text, a zip archive of texts, or a table."""

    def __init__(self, name: str, path: Path, text_field: str | None = None) -> None:
        self.path, self._field = path, text_field
        self._about = FoundFile.of(str(path.absolute()), path.stat())
        self._table = table_kind(path) if table_kind(path) != "csv" or text_field else None
        super().__init__(name, joined=self._table is not None or _is_zip(path))

    def signature(self) -> list[Any]:
        return ["file", self._about.signature(), self._field]

    def has_changed(self) -> bool:
        return not self._about.is_still(self.path)

    def size(self) -> int | None:
        return None if self.joined or self.path.suffix.lower() in COMPRESSED else self.path.stat().st_size

    def documents(self) -> Iterator[Document]:
        if self._table:
            for number, text in enumerate(read_rows(self.path, self._field)):
                yield f"row {number}", iter([text])
        elif self.joined:
            yield from zip_members(self.path)
        else:
            yield show(self.path), read_file(self.path)

    def refuses(self, error: NotTextError) -> bool:
        return not self.joined


class FolderSource(Source):
    """The files below a folder, in the order of their paths; each is a document, a table or an archive many.

    Links to folders are followed, each folder is read once. Left out, and counted: hidden files and folders, files
    without one of the `suffixes`, empty and binary ones, text that is no UTF-8, what this user may not read.

    Args:
        suffixes: such as [".py", ".md"], of files to read; None for every file that holds text.
        text_field: column of tables.
    """

    def __init__(self, name: str, path: Path, suffixes: list[str] | None, text_field: str | None = None) -> None:
        super().__init__(name, joined=True)
        self.path, self._field = path, text_field
        self._suffixes = None if suffixes is None else {f".{suffix.lower().lstrip('.')}" for suffix in suffixes}
        self._found: list[FoundFile] | None = None

    def signature(self) -> list[Any]:
        suffixes = None if self._suffixes is None else sorted(self._suffixes)
        return ["folder", suffixes, self._field, [file.signature() for file in self.files()]]

    def size(self) -> int | None:
        return sum(file.size for file in self.files())

    def files(self) -> list[FoundFile]:
        """The files that would be read, by name. Looked up once."""
        if self._found is None:
            others: Counter[str] = Counter()
            self._found = sorted(self._walk(self.path, "", set(), others))
            if others:
                kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(3))
                self.left_out["of other suffixes"] = (others.total(), kinds)
            if not self._found:
                wanted = "" if self._suffixes is None else f" {' or '.join(sorted(self._suffixes))}"
                raise MissingFileError(
                    f"corpus: the folder {show(self.path.absolute())} holds no{wanted} file{self._why_nothing()}"
                )
        return self._found

    def _why_nothing(self) -> str:
        return f" to read ({describe(self.left_out)})" if self.left_out else ""

    def _walk(self, folder: Path, prefix: str, seen: set[tuple[int, int]], others: Counter[str]) -> Iterator[FoundFile]:
        try:
            about = folder.stat()
            if (place := (about.st_dev, about.st_ino)) in seen:
                self.leave_out("links to folders that are read already", prefix)
                return
            seen.add(place)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise UnreadableFileError(f"corpus: {show(folder)} cannot be read: {error.strerror}") from error
            self.leave_out("unreadable", prefix)
            return
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                self.leave_out("hidden", name)
                continue
            try:
                about = entry.stat()
            except OSError:
                self.leave_out("links to nothing", name)
                continue
            if stat.S_ISDIR(about.st_mode):
                yield from self._walk(Path(entry.path), f"{name}/", seen, others)
            elif not stat.S_ISREG(about.st_mode):
                self.leave_out("sockets, devices or pipes", name)
            elif self._suffixes is not None and (suffix := _suffix(entry.name)) not in self._suffixes:
                others[suffix or "without"] += 1
            else:
                yield FoundFile.of(name, about)

    def has_changed(self) -> bool:
        return not all(file.is_still(self.path / file.name) for file in self.files())

    def documents(self) -> Iterator[Document]:
        for file in self.files():
            path = self.path / file.name
            table = table_kind(path)
            if table == "csv" and self._field is None:
                table = None  # as plain text
            if table:
                yield from (
                    (f"{file.name} row {n}", iter([text])) for n, text in enumerate(read_rows(path, self._field))
                )
            elif path.suffix.lower() == ".zip" and _is_zip(path):
                yield from ((f"{file.name}:{name}", pieces) for name, pieces in zip_members(path))
            else:
                yield file.name, read_file(path)

    def refuses(self, error: NotTextError) -> bool:
        return False


def describe(left_out: dict[str, tuple[int, str]]) -> str:
    """Reasons and counts, with an example each."""
    return ", ".join(f"{count} {reason} ({show(first)})" for reason, (count, first) in sorted(left_out.items()))


def _suffix(name: str) -> str:
    base, suffix = os.path.splitext(name.lower())
    return os.path.splitext(base)[1] if suffix in COMPRESSED else suffix


def _is_zip(path: Path) -> bool:
    try:
        with open_plain(path) as (_, kind):
            return kind == "zip"
    except UnreadableFileError:
        return False  # told when it is read
