"""Byte-level BPE learned from the training text, with GPT-2's words.

- Training is the `tokenizers` library's. Encoding looks whole words up: a regular expression cuts the text into the
  words that the library would make of its lines, and each distinct word goes through the library once (5 times as fast
  as handing it the lines, and the same ids: tests/datamodules/test_tokenizers.py).
- A run of letters, digits, signs or spaces is cut every 256 characters, in training and in encoding alike: merging is
  quadratic in the length of a word, and a string of DNA is a single one.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError

from .base import NamedTokenizer, check_ids, check_text, id_type
from .char import code_points

LONGEST = 256  # characters of a word
_REMEMBERED = 1_000_000  # distinct words whose ids are kept


def _pattern(letters: str, numbers: str, signs: str, spaces: str, line_ends: str) -> re.Pattern[str]:
    r"""GPT-2's `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, line by line.

    Args:
        letters, numbers, signs: patterns of one such character. spaces, line_ends: insides of character classes.
    """
    run = f"{{1,{LONGEST}}}"
    return re.compile(
        rf"'(?:[sdmt]|ll|ve|re)| ?{letters}{run}| ?{numbers}{run}| ?{signs}|"
        rf"[{spaces}]{{0,{LONGEST}}}(?:\r\n|[{line_ends}])|[{spaces}]{run}(?![^{spaces}])|[{spaces}]{run}"
    )


def _signs(sign: str) -> str:
    ends = "[\x1c\x1d\x1e]"  # they end a line to str.splitlines, which cut the lines in 0.1.0; the library thinks not
    return rf"(?:{sign}{{1,{LONGEST - 1}}}{ends}?|{ends})"


@cache
def _ascii_pattern() -> re.Pattern[str]:
    return _pattern("[A-Za-z]", "[0-9]", _signs(r"[!-/:-@\[-`{-~\x00-\x08\x0e-\x1b\x1f\x7f]"), "\t ", "\n\v\f\r")


@cache
def _unicode_pattern() -> re.Pattern[str]:
    # Python's \w and \d know other classes, so numbers that are no decimal digits are spelled out.
    numbers = _ranges(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in ("Nl", "No"))
    spaces, line_ends = "\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000", "\n\v\f\r\x85\u2028\u2029"
    sign = rf"(?:[^\w{spaces}{line_ends}\x1c\x1d\x1e]|_)"
    return _pattern(rf"[^\W\d_{numbers}]", rf"[\d{numbers}]", _signs(sign), spaces, line_ends)


def _ranges(characters: Iterable[str]) -> str:
    """Inside of a character class, from characters in order."""
    runs: list[list[str]] = []
    for character in characters:
        if runs and ord(character) == ord(runs[-1][1]) + 1:
            runs[-1][1] = character
        else:
            runs.append([character, character])
    return "".join(f"{re.escape(a)}-{re.escape(b)}" if a != b else re.escape(a) for a, b in runs)


@cache
def _unassigned() -> np.ndarray:
    """Whether each code point is one that this Python does not know; a newer library may, so it alone can class it."""
    return np.array([unicodedata.category(chr(point)) == "Cn" for point in range(sys.maxunicode + 1)])


def _has_unassigned(text: str) -> bool:
    return not text.isascii() and bool(_unassigned()[code_points(text)].any())


_ASCII_LINES = re.compile(r"((?:^[\x00-\x7f]*\n)+)", re.MULTILINE)


def words(text: str) -> list[str]:
    """The words that merges stay within; joined they are the text."""
    if text.isascii():
        return _ascii_pattern().findall(text)
    out: list[str] = []
    for run in _ASCII_LINES.split(text):  # the pattern for all of Unicode takes three times as long
        out += (_ascii_pattern() if run.isascii() else _unicode_pattern()).findall(run)
    return out


class _WordIds(dict[str, bytes]):
    """Each word's ids as the bytes of an array; learned from the library at first sight."""

    def __init__(self, library: Any, dtype: Any) -> None:
        self.library, self.dtype = library, dtype

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self.library.encode(word).ids, dtype=self.dtype).tobytes()
        if len(self) < _REMEMBERED and len(word) <= LONGEST:
            self[word] = ids
        return ids


class BPETokenizer(NamedTokenizer):
    """Byte-level BPE of the `tokenizers` library, given as that library's JSON.

    Example:
        >>> tokenizer = BPETokenizer.train("low lower lowest " * 9, 260)
        >>> [tokenizer.decode([i]) for i in tokenizer.encode("lower low")]
        ['low', 'e', 'r', ' low']
    """

    def __init__(self, model: str) -> None:
        from tokenizers import Tokenizer as Library

        self._library = Library.from_str(model)
        self._model = json.loads(self._library.to_str())
        self._words = _WordIds(self._library, id_type(self.vocab_size))

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn `vocab_size` tokens (the 256 bytes and the most frequent merges).

        Args:
            text: to learn from, whole or in pieces that end with lines.
            vocab_size: number of tokens.

        Raises:
            ConfigError: fewer than 257 tokens asked for, or more than the text can fill.
        """
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size <= 256:
            raise ConfigError(
                f"vocab_size {vocab_size} leaves byte-level BPE no merges; it needs more than 256, like 1024"
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
        length = 0

        def lines() -> Iterator[str]:
            nonlocal length
            for piece in [text] if isinstance(text, str) else text:
                check_text(piece)
                length += len(piece)
                for line in piece.splitlines(keepends=True):
                    yield from (line,) if len(line) <= LONGEST else words(line)

        library.train_from_iterator(lines(), trainer)
        if (got := library.get_vocab_size()) < vocab_size:
            raise ConfigError(
                f"the training text ({length} characters) yields only {got} BPE tokens; set vocab_size to at most {got}"
            )
        return cls(library.to_str())

    @property
    def vocab_size(self) -> int:
        return self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text` (no token reaches over a line's end); every text can be encoded."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an array."""
        check_text(text)
        parts = words(text)
        if _has_unassigned(text):  # a line with such a character is left to the library
            lines = text.splitlines(keepends=True)
            parts = [part for line in lines for part in ([line] if _has_unassigned(line) else words(line))]
        return np.frombuffer(b"".join(map(self._words.__getitem__, parts)), dtype=self._words.dtype)

    def cut(self, text: str) -> int:
        """After the last line's end, or where there is none before the last words, which more text may change."""
        if end := text.rfind("\n") + 1:
            return end
        parts = words(text)[:-3]
        while parts and parts[-1].isspace():  # what spaces make up a word depends on what follows
            parts.pop()
        return sum(map(len, parts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        listed = [int(i) for i in ids]
        check_ids(listed, self.vocab_size)
        return self._library.decode(listed, skip_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bpe", "model": self._model}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(json.dumps(state["model"]))
