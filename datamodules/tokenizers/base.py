"""What every tokenizer offers, and what all of them share."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from cubelet.common.errors import ConfigError

EOS_TEXT = "<|endoftext|>"
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """What the rest of the project relies on.

    Example:
        >>> from cubelet.datamodules import ByteTokenizer
        >>> tokenizer: Tokenizer = ByteTokenizer()
        >>> tokenizer.decode(tokenizer.encode("é"))
        'é'
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document, where the tokenizer has one; no text encodes to it."""
        ...

    @property
    def sha256(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an array of unsigned integers."""
        ...

    def cut(self, text: str) -> int:
        """Largest place known at which `text`, which goes on, may be cut: both parts encode to what the whole does."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


class NamedTokenizer:
    """Base of the tokenizers: equal, and named alike, where `to_dict()` is the same."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which `tokenizer_from_dict` makes the tokenizer again."""
        raise NotImplementedError

    @property
    def eos_id(self) -> int | None:
        return None

    @property
    def sha256(self) -> str:
        """Digest of `to_dict()`."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedTokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)


def check_ids(ids: list[int], vocab_size: int) -> None:
    """Raise ValueError for an id outside the vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise ValueError(f"token id {wrong} is outside the vocabulary of {vocab_size} tokens")


def check_text(text: str) -> None:
    """Raise ConfigError for half a character: a lone surrogate, as a broken pair of UTF-16 or a byte of a file name."""
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise ConfigError(
            f"the text has a lone surrogate (U+{ord(found[0]):04X}) at position {found.start()}, half of a character "
            "that cannot be encoded; take it out, or write the whole character"
        )


def id_type(vocab_size: int) -> type[np.unsignedinteger]:
    """Smallest unsigned type for the ids of a vocabulary."""
    return np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32
