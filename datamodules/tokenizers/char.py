"""Tokenizers without anything learned: characters, bytes, numbers, and an end-of-document id on top of any of them."""

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError

from .base import EOS_TEXT, NamedTokenizer, Tokenizer, check_ids, check_text, id_type

BYTES = 256


class CharTokenizer(NamedTokenizer):
    """One id a character of `alphabet`, a string without repeats, in its order.

    Example:
        >>> CharTokenizer("abc").encode("cab")
        [2, 0, 1]
    """

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                f"alphabet has {len(alphabet)} characters, {len(set(alphabet))} of them different; give each once"
            )
        self.alphabet = alphabet
        points = np.array([ord(character) for character in alphabet])
        # The id of every code point up to the last one that is known; a value that is no id for the others.
        self._ids = np.full(int(points.max()) + 2, len(alphabet), dtype=id_type(len(alphabet) + 1))
        self._ids[points] = np.arange(len(alphabet))

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of `text`.

        Raises:
            ConfigError: characters outside the alphabet; names them and where the first stands.
        """
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an array, without a Python loop over characters."""
        points = code_points(text)
        last = len(self._ids) - 1
        ids = self._ids[points if last >= np.iinfo(points.dtype).max else np.minimum(points, points.dtype.type(last))]
        known = ids < len(self.alphabet)
        if not known.all():
            self._refuse(text, int(np.argmin(known)))
        return ids

    def cut(self, text: str) -> int:
        return len(text)

    def _refuse(self, text: str, first: int) -> None:
        unknown = sorted(set(text) - set(self.alphabet))
        named = ", ".join(
            f"{character!r} ({unicodedata.name(character, f'U+{ord(character):04X}')})" for character in unknown[:8]
        )
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ConfigError(
            f"unknown characters: {named}{more}, the first at position {first}; this tokenizer knows the "
            f"{self.vocab_size} characters of its training text: {self.alphabet[:100]!r}"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Raises ValueError for an id outside the vocabulary."""
        listed = [int(i) for i in ids]
        check_ids(listed, self.vocab_size)
        return "".join(self.alphabet[i] for i in listed)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "char", "alphabet": self.alphabet}


def code_points(text: str) -> np.ndarray:
    """The code points of `text`, (characters,) uint8 or uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class ByteTokenizer(NamedTokenizer):
    """The 256 bytes of UTF-8.

    Example:
        >>> ByteTokenizer().encode("é")
        [195, 169]
    """

    @property
    def vocab_size(self) -> int:
        return BYTES

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as a uint8 array."""
        try:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        except UnicodeEncodeError:
            check_text(text)
            raise

    def cut(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 (a model may well emit some) become U+FFFD."""
        listed = [int(i) for i in ids]
        check_ids(listed, BYTES)
        return bytes(listed).decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "byte"}


class IdTokenizer(NamedTokenizer):
    """Numbers for data that comes as tokens: its text is the ids, with spaces between them.

    Args:
        vocab_size: number of ids, all below it.

    Example:
        >>> IdTokenizer(50_257).encode("464 3290")
        [464, 3290]
    """

    def __init__(self, vocab_size: int) -> None:
        self._size = vocab_size

    @property
    def vocab_size(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """The numbers in `text`.

        Raises:
            ConfigError: something that is no number, or an id outside the vocabulary.
        """
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise ConfigError(
                f"{text[:40]!r} is not a list of token ids; this model was trained on tokens without a tokenizer. Give "
                "ids with spaces between them, or name the data's tokenizer"
            ) from None
        check_ids(ids, self._size)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=id_type(self._size))

    def cut(self, text: str) -> int:
        return text.rfind(" ") + 1 or len(text)

    def decode(self, ids: Iterable[int]) -> str:
        listed = [int(i) for i in ids]
        check_ids(listed, self._size)
        return "".join(f"{i} " for i in listed)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "ids", "vocab_size": self._size}


class EosTokenizer(NamedTokenizer):
    """Another tokenizer with one more id, its last, that ends a document.

    Example:
        >>> tokenizer = EosTokenizer(CharTokenizer("ab"))
        >>> tokenizer.vocab_size, tokenizer.eos_id, tokenizer.decode([0, 1, 2])
        (3, 2, 'ab<|endoftext|>')
    """

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size + 1

    @property
    def eos_id(self) -> int:
        return self.inner.vocab_size

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def encode_array(self, text: str) -> np.ndarray:
        return self.inner.encode_array(text)

    def cut(self, text: str) -> int:
        return self.inner.cut(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with `<|endoftext|>` where a document ends."""
        out, run = [], []
        for i in map(int, ids):
            if i == self.eos_id:
                out += [self.inner.decode(run), EOS_TEXT]
                run = []
            else:
                run.append(i)
        return "".join([*out, self.inner.decode(run)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "eos", "inner": self.inner.to_dict()}
