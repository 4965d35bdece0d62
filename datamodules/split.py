"""A first reading of a source, and which of its text trains and which validates.

Where there are many documents, whole ones are held out: chosen by a hash of their number, as many as fit into the
share. Otherwise (a single text; so few documents that whole ones would be far more than the share) the end of the text
is, as nanoGPT does. Nothing but counts and digests is kept of the text, so a source may be of any size.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cubelet.common.checks import check_choice
from cubelet.common.errors import ConfigError
from cubelet.common.seeds import hash_uint64

from .sources import Source, describe
from .text_files import NotTextError
from .tokenizers.char import code_points

Split = Literal["auto", "documents", "tail"]
DEFAULT_SPLIT: Split = "auto"
SEPARATOR, LAST = "\n\n", "\n"  # between documents that are joined, and behind the last one
START, END = 1, 2  # marks of a piece of text: it begins a document, it ended one
Piece = tuple[str, str, int]  # "train" or "val", text, marks


@dataclass(frozen=True)
class Reading:
    """What a first reading of a source found.

    Attributes:
        digest: of the documents that are taken and of where each ends.
        lengths: (n,) int64, characters of each of them.
        text_bytes: of all of them, as UTF-8.
        skipped: numbers of the documents that are left out.
        alphabet: all characters, where they were asked for; those of joining included.
    """

    digest: str
    lengths: np.ndarray
    text_bytes: int
    skipped: frozenset[int]
    alphabet: str = ""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def characters(self, *, joined: bool, eos: bool = False) -> int:
        """Characters of the whole text."""
        blank = 0 if eos or not joined else len(SEPARATOR) * (len(self.lengths) - 1) + len(LAST)
        return int(self.lengths.sum()) + blank


def scan(
    source: Source, *, alphabet: bool = False, progress: Callable[[int], object] = lambda characters: None
) -> Reading:
    """Read a source once.

    Args:
        alphabet: collect all characters.
        progress: is told the number of characters read since it was last called.

    Raises:
        UnreadableFileError: a document that is no text, where it is the only one. ConfigError: nothing but blanks.
    """
    whole, lengths, skipped, letters, text_bytes = hashlib.sha256(), array("q"), set(), set(), 0
    source.left_out = {reason: count for reason, count in source.left_out.items() if reason not in _FOUND_IN_READING}
    for number, (name, pieces) in enumerate(source.documents()):
        digest, length, size, blank, own = hashlib.sha256(), 0, 0, True, set()
        try:
            for text in clean(source, pieces):
                data = text.encode("utf-8", "surrogatepass")
                digest.update(data)
                length, size = length + len(text), size + len(data)
                blank = blank and text.isspace()
                if alphabet:
                    own |= new_letters(text, letters | own)
                progress(len(text))
        except NotTextError as error:
            if source.refuses(error):
                raise
            source.leave_out(error.kind, name)
            skipped.add(number)
            continue
        if blank:
            if not source.joined:
                raise ConfigError(
                    f"corpus: {name} is empty ({length} characters, no text); nothing can be learned from it"
                )
            source.leave_out("empty", name)
            skipped.add(number)
            continue
        whole.update(digest.digest())
        lengths.append(length)
        text_bytes += size
        letters |= own
    if not lengths:
        raise ConfigError(f"corpus: {source.name} holds no text{source_report(source)}")
    if alphabet and source.joined:
        letters |= set(SEPARATOR + LAST)
    return Reading(
        whole.hexdigest(),
        np.array(lengths, dtype=np.int64),
        text_bytes,
        frozenset(skipped),
        "".join(sorted(letters)),
        dict(source.left_out),
    )


_FOUND_IN_READING = ("empty", "binary", "not UTF-8")


def source_report(source: Source) -> str:
    """What was left out, as the end of a sentence."""
    return f"; left out: {describe(source.left_out)}" if source.left_out else ""


def new_letters(text: str, known: set[str]) -> set[str]:
    """Characters of `text` that are not known yet."""
    if text.isascii():  # deleting what is known is ten times as fast as looking at every character
        return set(text.encode().translate(None, "".join(c for c in known if c.isascii()).encode()).decode())
    points = code_points(text)
    there = np.zeros(int(points.max()) + 1, dtype=bool)
    there[points] = True
    return set(map(chr, np.flatnonzero(there))) - known


def clean(source: Source, pieces: Iterator[str]) -> Iterator[str]:
    """A document's text, without newlines at either end where documents are joined."""
    if not source.joined:
        yield from pieces
        return
    held = None  # newlines that may be the last ones; None before the text begins
    for piece in pieces:
        piece = piece.lstrip("\n") if held is None else piece
        body = piece.rstrip("\n")
        if body:
            yield (held or "") + body
            held = piece[len(body) :]
        elif held is not None:
            held += piece


@dataclass(frozen=True)
class Plan:
    """Which text validates.

    Attributes:
        cut: characters of the joined text that train, the rest validates; None for all of it.
        held_out: (n,) bool, documents that validate; None where the text is cut.
        eos: documents stand apart: an end token follows each, and no blank line.
    """

    cut: int | None
    held_out: np.ndarray | None = None
    eos: bool = False


def split_documents(source: Source, reading: Reading, split: Split, val_fraction: float, *, eos: bool = False) -> Plan:
    """Decide what is held out.

    Args:
        split: "documents", "tail", or "auto" for documents where they exist and are small enough.
        val_fraction: share of the characters to hold out, where the source does not say itself.

    Raises:
        ConfigError: a share outside (0, 1), or too few documents.
    """
    check_choice("split", split, Split)
    if not 0 < val_fraction < 1:
        raise ConfigError(
            f"val_fraction is {val_fraction}; it is a share of the text and must lie between 0 and 1, like 0.1"
        )
    total = reading.characters(joined=source.joined, eos=eos)
    if source.held_out is not None:
        return Plan(None, eos=eos)
    if split == "tail" or (split == "auto" and not source.joined):
        return Plan(int(total * (1 - val_fraction)), eos=eos)
    held_out = choose_documents(reading.lengths, val_fraction)
    share = reading.lengths[held_out].sum() / reading.lengths.sum()
    if split == "auto" and (held_out.all() or share > 2 * val_fraction):
        return Plan(int(total * (1 - val_fraction)), eos=eos)
    if held_out.all():
        raise ConfigError(
            f"split='documents': {source.name} is a single document, so none can be held out; use split='tail'"
        )
    return Plan(None, held_out, eos)


def choose_documents(lengths: np.ndarray, share: float) -> np.ndarray:
    """Which documents to hold out (n,) bool: in the order of a hash of their numbers, those that still fit into the
    share of all characters; the shortest where none does."""
    held_out = np.zeros(len(lengths), dtype=bool)
    rest = np.argsort(hash_uint64(np.arange(len(lengths), dtype=np.uint64), 0), kind="stable")
    room = int(lengths.sum() * share)
    while len(rest := rest[lengths[rest] <= room]):
        fits = int(np.searchsorted(np.cumsum(lengths[rest]), room, side="right"))
        held_out[rest[:fits]] = True
        room -= int(lengths[rest[:fits]].sum())
        rest = rest[fits + 1 :]
    if not held_out.any():
        held_out[int(np.argmin(lengths))] = True
    return held_out


def join_parts(source: Source, reading: Reading, plan: Plan, held_out: Reading | None = None) -> Iterator[Piece]:
    """The text of both parts, in the order of reading: all pieces of "train" and "val", each with its marks.

    Args:
        held_out: the reading of the source's own validation documents, which follow then.
    """
    if plan.held_out is None:
        yield from _cut(_joined(source, reading, plan.eos), plan.cut)
    else:
        yield from _by_document(source, reading, plan)
    if source.held_out is not None:
        assert held_out is not None
        for text, mark in _joined(source.held_out, held_out, plan.eos):
            yield "val", text, mark


def _taken(source: Source, reading: Reading) -> Iterator[Iterator[str]]:
    for number, (_, pieces) in enumerate(source.documents()):
        if number not in reading.skipped:
            yield clean(source, pieces)


def _joined(source: Source, reading: Reading, eos: bool) -> Iterator[tuple[str, int]]:
    for number, pieces in enumerate(_taken(source, reading)):
        if number and not eos:
            yield SEPARATOR, 0
        mark = START
        for text in pieces:
            yield text, mark
            mark = 0
        if eos:
            yield "", END
    if source.joined and not eos:
        yield LAST, 0


def _cut(pieces: Iterator[tuple[str, int]], cut: int | None) -> Iterator[Piece]:
    at = 0
    for text, mark in pieces:
        room = len(text) if cut is None else max(0, cut - at)
        if text[:room] or (not text and (cut is None or at <= cut)):
            yield "train", text[:room], mark
        if text[room:] or (not text and cut is not None and at > cut):
            yield "val", text[room:], START if text and cut is not None and at <= cut else mark
        at += len(text)


def _by_document(source: Source, reading: Reading, plan: Plan) -> Iterator[Piece]:
    assert plan.held_out is not None
    begun = set()
    for held_out, pieces in zip(plan.held_out, _taken(source, reading), strict=True):
        part = "val" if held_out else "train"
        if part in begun and not plan.eos:
            yield part, SEPARATOR, 0
        begun.add(part)
        mark = START
        for text in pieces:
            yield part, text, mark
            mark = 0
        if plan.eos:
            yield part, "", END
    for part in () if plan.eos else sorted(begun):
        yield part, LAST, 0
