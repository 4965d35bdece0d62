"""Text to token ids and back: this project's own tokenizers, and those that others made.

A tokenizer is a small value: `to_dict` gives plain JSON that travels in checkpoints, `tokenizer_from_dict` makes it
again, `sha256` names it. Characters are ordered by code point, as in char-rnn and nanoGPT, so that ids agree with
theirs. BPE works on bytes, so it encodes any prompt; a character tokenizer knows only its alphabet and says what it
does not know.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError, MissingFileError

from .base import EOS_TEXT, Tokenizer, id_type
from .bpe import BPETokenizer
from .char import ByteTokenizer, CharTokenizer, EosTokenizer, IdTokenizer
from .external import LibraryTokenizer, TiktokenTokenizer, load_library_tokenizer, load_tiktoken

KINDS = ("char", "byte", "bpe")

__all__ = [
    "EOS_TEXT",
    "KINDS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "EosTokenizer",
    "IdTokenizer",
    "LibraryTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "build_tokenizer",
    "check_kind",
    "id_type",
    "load_tokenizer",
    "tokenizer_from_dict",
]


def check_kind(kind: str, vocab_size: int | None) -> None:
    """Raise where one of `KINDS` and a vocab_size do not go together, or `kind` is none of them.

    Raises:
        ConfigError: says which.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"tokenizer '{kind}' is unknown; there are: {', '.join(KINDS)}, the path of a tokenizer.json or of a "
            "folder that holds one, and with pip install 'cubelet[data]' tiktoken's encodings that are on this disk"
        )
    if kind == "bpe" and vocab_size is None:
        raise ConfigError("tokenizer 'bpe' needs a vocab_size, like 1024")
    if kind != "bpe" and vocab_size is not None:
        raise ConfigError(
            f"vocab_size {vocab_size} was given, but tokenizer '{kind}' has its size from the text; leave it out"
        )


def build_tokenizer(
    kind: str, text: str | Iterable[str], vocab_size: int | None = None
) -> CharTokenizer | ByteTokenizer | BPETokenizer:
    """Make a tokenizer for `text`.

    Args:
        kind: `char` (the alphabet of `text`), `byte`, or `bpe`.
        text: all of the text for `char`, the training text for `bpe`; whole or in pieces that end with lines.
        vocab_size: number of tokens, for `bpe` only.

    Raises:
        ValueError: an unknown kind; a vocab_size where it is not free, none where it is needed.
    """
    check_kind(kind, vocab_size)
    if kind == "bpe":
        assert vocab_size is not None
        return BPETokenizer.train(text, vocab_size)
    if kind == "byte":
        return ByteTokenizer()
    return CharTokenizer("".join(sorted(set().union(*([text] if isinstance(text, str) else text)))))


def load_tokenizer(name: str, vocab_size: int | None = None) -> Tokenizer:
    """A tokenizer that exists already.

    Args:
        name: path of a `tokenizer.json` or of a folder that holds one, or a name of tiktoken's.
        vocab_size: what it should have, where somebody says so.

    Raises:
        ConfigError: an unknown name, or another size.
        MissingFileError: a path without a file.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        tokenizer: Tokenizer | None = load_library_tokenizer(path)
    elif path.suffix == ".json" or len(path.parts) > 1:
        raise MissingFileError(f"tokenizer: there is no file or folder {path.absolute()}")
    else:
        tokenizer = load_tiktoken(name)
    if tokenizer is None:
        check_kind(name, None)
        raise AssertionError(f"{name} is a kind, not a file")
    if vocab_size is not None and vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"vocab_size {vocab_size} was given, but tokenizer '{name}' has {tokenizer.vocab_size}; leave it out"
        )
    return tokenizer


def tokenizer_from_dict(data: dict[str, Any]) -> Tokenizer:
    """Make the tokenizer again whose `to_dict()` gave `data`.

    Raises:
        ValueError: `data` is not such a dict.
    """
    kind = data.get("kind")
    if kind == "char":
        return CharTokenizer(data["alphabet"])
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return BPETokenizer(json.dumps(data["model"]))
    if kind == "ids":
        return IdTokenizer(data["vocab_size"])
    if kind == "eos":
        return EosTokenizer(tokenizer_from_dict(data["inner"]))
    if kind == "library":
        return LibraryTokenizer(json.dumps(data["model"]), data["eos"])
    if kind == "tiktoken":
        return TiktokenTokenizer(data["name"], data["pattern"], data["ranks"], data["special"])
    raise ValueError(
        f"this is no saved tokenizer: kind is {kind!r}, expected one of char, byte, bpe, ids, eos, library, tiktoken"
    )
