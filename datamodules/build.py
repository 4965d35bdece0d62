"""The work of filling the cache: reading, learning a tokenizer, encoding into shards, with a journal for going on."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError, DiskError, UnreadableFileError
from cubelet.common.files import sync_folder, write_atomic

from .encoding import Encoded, encode_tasks, make_tasks
from .folder import Part, Settings, TokenizedCorpus, lock, open_folder, write_meta
from .progress import progress_bar
from .shards import DamagedError, ShardWriter
from .sizes import format_bytes
from .sources import Source
from .split import END, Piece, Plan, Reading, join_parts, scan, split_documents
from .tokenizers import (
    KINDS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    EosTokenizer,
    Tokenizer,
    id_type,
    load_tokenizer,
)

SAMPLE = 32_000_000  # characters that BPE is learned from, at most
_STRETCH = 1 << 16  # characters of the sample that lie together
COMMIT_BYTES, COMMIT_SECONDS = 1 << 26, 10.0  # between two entries of the journal


@dataclass
class Journal:
    """How far the encoding of a corpus is; what is behind it on the disk is dropped when it goes on.

    Attributes:
        tasks: that are done.
        lengths: of the arrays.
        characters: of the parts. first: characters of each part's first token.
    """

    tasks: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    characters: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    first: dict[str, int] = field(default_factory=dict)


class CorpusBuilder:
    """Makes what is missing in the cache, and opens what is there.

    Args:
        sources: corpora that share a tokenizer.
        settings: how they become tokens.
        parts: of each, "train" or "val" where all of it is for that, None where it is split.
        root: folder of the cache's folders.
        warn: is told of folders that are damaged.
    """

    def __init__(
        self,
        sources: list[Source],
        settings: Settings,
        parts: list[Part | None],
        root: Path,
        warn: Callable[[str], Any],
    ) -> None:
        self.sources, self.settings, self.parts, self.root, self.warn = sources, settings, parts, root, warn
        self.readings: list[tuple[Reading, Reading | None]] = []
        self._alone = False  # whether no other process fills the same folder

    def run(self) -> list[TokenizedCorpus]:
        alphabet = self.settings.tokenizer == "char"
        for source in self.sources:
            with progress_bar(f"reading {source.name}", source.size()) as advance:
                own = scan(source, alphabet=alphabet, progress=advance)
                held = source.held_out
                other = None if held is None else scan(held, alphabet=alphabet, progress=advance)
            self.readings.append((own, other))
        made = [self._make(number) for number in range(len(self.sources))]
        for source in self.sources:
            if source.has_changed() or (source.held_out is not None and source.held_out.has_changed()):
                raise UnreadableFileError(
                    f"corpus: {source.name} changed while it was read; start again when it is whole"
                )
        return made

    def _make(self, number: int) -> TokenizedCorpus:
        folder = self._folder(number)
        with lock(folder.with_name(f".{folder.name}.lock")) as held:
            self._alone = held is True
            if folder.is_dir():
                try:
                    return open_folder(folder)
                except DamagedError as error:
                    self.warn(f"the tokenized text in {folder} is damaged ({error}); it is made again")
                    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".damaged", dir=self.root))
                    os.rename(folder, aside / "was")
                    shutil.rmtree(aside, ignore_errors=True)
            self._encode(number, folder)
            return open_folder(folder)

    def _folder(self, number: int) -> Path:
        """A folder named after all that the tokens depend on; the same text under another name keeps its folder."""
        texts = [[own.digest, None if other is None else other.digest] for own, other in self.readings]
        learned_from = [texts, self.parts] if self.settings.tokenizer in ("char", "bpe") else None
        about = [
            self.settings.key(),
            SAMPLE,
            texts[number],
            self.sources[number].joined,
            self.parts[number],
            learned_from,
        ]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        kind = _slug(Path(self.settings.tokenizer).stem)[:16]
        same = sorted(self.root.glob(f"*-{kind}-{key}"))
        return (
            same[0]
            if same
            else self.root / f"{_slug(Path(self.sources[number].name).stem)[:32] or 'text'}-{kind}-{key}"
        )

    # -- the tokenizer --

    @cached_property
    def tokenizer(self) -> Tokenizer:
        kind, size, eos = self.settings.tokenizer, self.settings.vocab_size, self.settings.eos
        if kind == "char":
            # Characters that only the validation text has are part of the alphabet too, as in nanoGPT.
            all_readings = [reading for pair in self.readings for reading in pair if reading is not None]
            tokenizer: Tokenizer = CharTokenizer("".join(sorted({c for r in all_readings for c in r.alphabet})))
        elif kind == "byte":
            tokenizer = ByteTokenizer()
        elif kind == "bpe":
            assert size is not None
            tokenizer = BPETokenizer.train(self._sample(), size - bool(eos))
        else:
            tokenizer = load_tokenizer(kind, size)
        if eos and tokenizer.eos_id is None:
            if kind not in KINDS:
                raise ConfigError(f"eos: the tokenizer '{kind}' has no token that ends a document; set eos=false")
            tokenizer = EosTokenizer(tokenizer)
        return tokenizer

    def _sample(self) -> Iterator[str]:
        """Training text to learn merges from: all of it, or evenly spread stretches, `SAMPLE` characters together."""
        total = sum(
            own.characters(joined=source.joined)
            for source, (own, _), part in zip(self.sources, self.readings, self.parts, strict=True)
            if part != "val"
        )
        share, seen, taken = min(1.0, SAMPLE / total), 0, 0
        with progress_bar("learning BPE", total) as advance:
            for number in range(len(self.sources)):
                for text in _stretches(text for part, text, _ in self._pieces(number) if part == "train"):
                    if share == 1 or taken <= seen * share:
                        taken += len(text)
                        yield text
                    advance(len(text))
                    seen += len(text)

    # -- parts and pieces --

    def _plan(self, number: int) -> Plan:
        source, reading = self.sources[number], self.readings[number][0]
        eos = self.settings.eos
        if eos is None:  # where the tokenizer has one (this project's own have none by themselves)
            eos = source.joined and self.settings.tokenizer not in KINDS and self.tokenizer.eos_id is not None
        if (part := self.parts[number]) is not None:
            return Plan(None if part == "train" else 0, eos=eos)
        return split_documents(source, reading, self.settings.split, self.settings.val_fraction, eos=eos)

    def _pieces(self, number: int) -> Iterator[Piece]:
        own, other = self.readings[number]
        return join_parts(self.sources[number], own, self._plan(number), other)

    # -- encoding --

    def _encode(self, number: int, folder: Path) -> None:
        source, (own, other) = self.sources[number], self.readings[number]
        if self._alone:
            work = folder.with_name(f"{folder.name}.part")
            work.mkdir(exist_ok=True)
        else:
            work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=self.root))
        try:
            arrays, journal, sha256 = self._write_arrays(number, work)
            for part, purpose in (("train", "training"), ("val", "validation")):
                if not journal.characters[part] and self.parts[number] is None:
                    both = " + ".join(str(journal.characters[p]) for p in ("train", "val"))
                    raise ConfigError(f"corpus '{source.name}' leaves no {purpose} text ({both} characters)")
            targets = max(1, arrays["val"].length - 1)
            write_meta(
                work,
                {name: writer.close() for name, writer in arrays.items()},
                self.tokenizer,
                {
                    "sha256": sha256,
                    "characters_per_token": (journal.characters["val"] - journal.first.get("val", 0)) / targets,
                    "characters": journal.characters,
                    "taken": {
                        "joined": source.joined,
                        "documents": len(own.lengths) + (0 if other is None else len(other.lengths)),
                        "characters": sum(journal.characters.values()),
                        "left_out": {why: list(count) for why, count in own.left_out.items()},
                    },
                },
            )
            (work / "journal.json").unlink(missing_ok=True)
            work.chmod(0o755)
            with suppress(OSError):  # another process was faster; its folder holds the same
                os.rename(work, folder)
                sync_folder(self.root)
        finally:
            # What is done stays for the next start, unless nothing is, or another process may do the same.
            if not (self._alone and (work / "journal.json").is_file()):
                shutil.rmtree(work, ignore_errors=True)

    def _write_arrays(self, number: int, work: Path) -> tuple[dict[str, ShardWriter], Journal, str]:
        tokenizer, plan = self.tokenizer, self._plan(number)
        dtype, shard = id_type(tokenizer.vocab_size), self.settings.shard_tokens
        arrays = {
            "train": ShardWriter(work, "train", dtype, shard),
            "val": ShardWriter(work, "val", dtype, shard),
            # In one file each, so that they can be memory-mapped, however many there are.
            "train-documents": ShardWriter(work, "train-documents", np.int64, 1 << 60),
            "val-documents": ShardWriter(work, "val-documents", np.int64, 1 << 60),
        }
        journal = self._go_on(work, arrays)
        self._check_room(number, work, np.dtype(dtype).itemsize)
        hashes = TextHash(plan)
        tasks = enumerate(make_tasks(hashes.watch(self._pieces(number)), tokenizer))
        total = sum(r.characters(joined=False) for r in self.readings[number] if r is not None)
        written, committed = 0, time.monotonic()
        try:
            with progress_bar(f"encoding {self.sources[number].name}", total) as advance:
                rest = ((n, task) for n, task in tasks if n >= journal.tasks)
                for done in encode_tasks(rest, tokenizer, self._processes(total)):
                    self._append(arrays, journal, done)
                    advance(done.characters)
                    written += done.tokens.nbytes
                    if written > COMMIT_BYTES or time.monotonic() - committed > COMMIT_SECONDS:
                        self._commit(work, arrays, journal)
                        written, committed = 0, time.monotonic()
        except BaseException:
            if journal.tasks and self._alone:
                with suppress(OSError):
                    self._commit(work, arrays, journal)
            for writer in arrays.values():
                writer.abandon()
            raise
        return arrays, journal, hashes.hexdigest()

    def _processes(self, characters: int) -> int:
        if self.settings.tokenizer in ("char", "byte") or characters < 4_000_000:
            return 1  # faster than handing the text to others
        if self.settings.processes is not None:
            return self.settings.processes
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _append(self, arrays: dict[str, ShardWriter], journal: Journal, done: Encoded) -> None:
        part, tokens = done.part, arrays[done.part]
        arrays[f"{part}-documents"].append(done.starts + tokens.length)
        if not tokens.length:
            journal.first[part] = done.first_characters
        tokens.append(done.tokens)
        journal.characters[part] += done.characters
        journal.tasks = done.task + 1

    def _commit(self, work: Path, arrays: dict[str, ShardWriter], journal: Journal) -> None:
        for name, writer in arrays.items():
            writer.sync()
            journal.lengths[name] = writer.length
        about = {"tokenizer": self.tokenizer.sha256, "journal": vars(journal)}
        write_atomic(work / "journal.json", json.dumps(about))

    def _go_on(self, work: Path, arrays: dict[str, ShardWriter]) -> Journal:
        try:
            about = json.loads((work / "journal.json").read_text(encoding="utf-8"))
            journal = Journal(**about["journal"])
            if about["tokenizer"] == self.tokenizer.sha256:
                for name, writer in arrays.items():
                    writer.go_on(journal.lengths[name])
                return journal
        except (OSError, ValueError, KeyError, TypeError, DamagedError):
            pass
        for writer in arrays.values():
            writer.abandon()
        for left in work.iterdir():
            left.unlink()
        for writer in arrays.values():
            writer.length = 0
        return Journal()

    def _check_room(self, number: int, work: Path, itemsize: int) -> None:
        """Raise DiskError where the tokens will not fit onto the disk."""
        readings = [reading for reading in self.readings[number] if reading is not None]
        if self.settings.tokenizer == "char":
            joined = self.sources[number].joined
            tokens = sum(reading.characters(joined=joined) for reading in readings)
        else:
            # Learned tokens stand for 2 bytes or more, but for tiny vocabularies.
            tokens = sum(r.text_bytes for r in readings) // (2 if self.tokenizer.vocab_size > 512 else 1)
        needed = tokens * itemsize + 8 * sum(len(reading.lengths) for reading in readings)
        there = sum(path.stat().st_size for path in work.iterdir())
        free = shutil.disk_usage(work).free
        if needed - there > free:
            raise DiskError(
                f"the tokens of '{self.sources[number].name}' need about {format_bytes(needed)} in {self.root}, where "
                f"{format_bytes(free)} are free; make room, or name another folder with cache_dir or $CUBELET_CACHE"
            )


class TextHash:
    """The digest of a text that was split: of the training text, then the validation text, as 0.1.0 took it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts = {"train": hashlib.sha256(), "val": hashlib.sha256()}
        self._whole, self._part = hashlib.sha256(), "train"

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The same pieces, looked at."""
        for part, text, mark in pieces:
            data = text.encode("utf-8", "surrogatepass") + (b"\xfe" if mark & END else b"")  # never part of UTF-8
            if self._plan.held_out is not None:
                self._parts[part].update(data)
            else:
                if part != self._part:
                    self._part = part
                    self._whole.update(b"\xff")
                self._whole.update(data)
            yield part, text, mark

    def hexdigest(self) -> str:
        """Digest of both parts and where one ends."""
        if self._plan.held_out is not None:
            both = "documents" + self._parts["train"].hexdigest() + self._parts["val"].hexdigest()
            return hashlib.sha256(both.encode()).hexdigest()
        whole = self._whole.copy()
        if self._part == "train":
            whole.update(b"\xff")
        return whole.hexdigest()


def _stretches(pieces: Iterator[str]) -> Iterator[str]:
    """The same text in pieces of about `_STRETCH` characters that end with lines."""
    text = ""
    for piece in pieces:
        text, at = text + piece, 0
        while len(text) - at >= _STRETCH:
            end = text.rfind("\n", at, at + _STRETCH) + 1 or text.find("\n", at + _STRETCH) + 1
            if not end:
                if len(text) - at < 16 * _STRETCH:
                    break
                end = len(text)  # a single line of a million characters, whose words are cut anyway
            yield text[at:end]
            at = end
        text = text[at:]
    if text:
        yield text


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
