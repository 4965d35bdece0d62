"""Text to token ids and back: characters, bytes, and byte-level BPE learned from the training text.

A tokenizer is a small value: `to_dict` gives plain JSON that travels in checkpoints, `tokenizer_from_dict` makes it
again, `sha256` names it. Characters are ordered by code point, as in char-rnn and nanoGPT, so that ids agree with
theirs. BPE works on bytes, so it encodes any prompt; a character tokenizer knows only its alphabet and says what it
does not know.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

KINDS = ("char", "byte", "bpe")
BYTES = 256


class Tokenizer(Protocol):
    """What the rest of the project relies on."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


class _Named:
    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def sha256(self) -> str:
        """Digest of `to_dict()`: equal where two tokenizers are the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)


class CharTokenizer(_Named):
    """One id a character of `alphabet`, a string without repeats, in its order."""

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                f"alphabet has {len(alphabet)} characters, {len(set(alphabet))} of them different; give each once"
            )
        self.alphabet = alphabet
        self._points = np.array([ord(character) for character in alphabet], dtype=np.uint32)
        self._order = np.argsort(self._points)

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of `text`.

        Raises:
            ValueError: characters outside the alphabet; names them and where the first stands.
        """
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an int64 array, without a Python loop over characters."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        sorted_points = self._points[self._order]
        place = np.minimum(np.searchsorted(sorted_points, points), len(sorted_points) - 1)
        known = sorted_points[place] == points
        if not known.all():
            self._refuse(text, int(np.argmin(known)))
        return self._order[place]

    def _refuse(self, text: str, first: int) -> None:
        unknown = sorted(set(text) - set(self.alphabet))
        named = ", ".join(
            f"{character!r} ({unicodedata.name(character, f'U+{ord(character):04X}')})" for character in unknown[:8]
        )
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ValueError(
            f"unknown characters: {named}{more}, the first at position {first}; this tokenizer knows the "
            f"{self.vocab_size} characters of its training text: {self.alphabet[:100]!r}"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Raises ValueError for an id outside the vocabulary."""
        listed = [int(i) for i in ids]
        _check_ids(listed, self.vocab_size)
        return "".join(self.alphabet[i] for i in listed)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "char", "alphabet": self.alphabet}


class ByteTokenizer(_Named):
    """The 256 bytes of UTF-8."""

    @property
    def vocab_size(self) -> int:
        return BYTES

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`."""
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as a uint8 array."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 (a model may well emit some) become U+FFFD."""
        listed = [int(i) for i in ids]
        _check_ids(listed, BYTES)
        return bytes(listed).decode("utf-8", "replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "byte"}


class BPETokenizer(_Named):
    """Byte-level BPE of the `tokenizers` library, given as that library's JSON."""

    def __init__(self, model: str) -> None:
        from tokenizers import Tokenizer as Library

        self._library = Library.from_str(model)
        self._model = json.loads(self._library.to_str())

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BPETokenizer":
        """Learns `vocab_size` tokens (the 256 bytes and the most frequent merges) from `text`.

        Raises:
            ValueError: fewer than 257 tokens asked for, or more than the text can fill.
        """
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size <= BYTES:
            raise ValueError(
                f"vocab_size {vocab_size} leaves byte-level BPE no merges; it needs more than {BYTES}, like 1024"
            )
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            special_tokens=[],
        )
        library.train_from_iterator(text.splitlines(keepends=True), trainer)
        if (got := library.get_vocab_size()) < vocab_size:
            raise ValueError(
                f"the training text ({len(text)} characters) yields only {got} BPE tokens; "
                f"set vocab_size to at most {got}"
            )
        return cls(library.to_str())

    @property
    def vocab_size(self) -> int:
        return self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`, line by line (no token reaches over a line's end); every text can be encoded."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an int64 array; the lines are encoded in parallel."""
        encoded = self._library.encode_batch_fast(text.splitlines(keepends=True))
        return np.concatenate([np.asarray(part.ids, dtype=np.int64) for part in encoded] or [np.empty(0, np.int64)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        listed = [int(i) for i in ids]
        _check_ids(listed, self.vocab_size)
        return self._library.decode(listed, skip_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bpe", "model": self._model}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(json.dumps(state["model"]))


def build_tokenizer(
    kind: str, text: str, vocab_size: int | None = None
) -> CharTokenizer | ByteTokenizer | BPETokenizer:
    """A tokenizer for `text`.

    Args:
        kind: `char` (the alphabet of `text`), `byte`, or `bpe`.
        text: all of the text for `char`, the training text for `bpe`.
        vocab_size: number of tokens, for `bpe` only.

    Raises:
        ValueError: an unknown kind; a vocab_size where it is not free, none where it is needed.
    """
    if kind not in KINDS:
        raise ValueError(f"tokenizer '{kind}' is unknown; there are: {', '.join(KINDS)}")
    if kind == "bpe":
        if vocab_size is None:
            raise ValueError("tokenizer 'bpe' needs a vocab_size, like 1024")
        return BPETokenizer.train(text, vocab_size)
    if vocab_size is not None:
        raise ValueError(
            f"vocab_size {vocab_size} was given, but tokenizer '{kind}' has its size from the text; leave it out"
        )
    return ByteTokenizer() if kind == "byte" else CharTokenizer("".join(sorted(set(text))))


def tokenizer_from_dict(data: dict[str, Any]) -> CharTokenizer | ByteTokenizer | BPETokenizer:
    """The tokenizer whose `to_dict()` gave `data`.

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
    raise ValueError(f"this is no saved tokenizer: kind is {kind!r}, expected one of {', '.join(KINDS)}")


def _check_ids(ids: list[int], vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise ValueError(f"token id {wrong} is outside the vocabulary of {vocab_size} tokens")
