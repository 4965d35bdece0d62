"""Transcripts as tokens: characters after a normalisation that the model's outputs and references share.

Token 0 is CTC's blank and the padding, 1 begins a text, 2 ends it; characters follow in the order of their code points.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

BLANK, BOS, EOS = 0, 1, 2
FIRST_CHARACTER = 3


def normalize_text(text: str) -> str:
    """Return the text in NFC and lower case, with letters, digits, apostrophes and single spaces only.

    Example:
        >>> normalize_text("  “Don’t”, she said -- LOUDLY! ")
        "don't she said loudly"
    """
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    # Combining marks that NFC leaves (as in Hindi) belong to their letters.
    kept = (c if c == "'" or unicodedata.category(c)[0] in "LNM" else " " for c in text)
    words = ("".join(kept)).split()
    return " ".join(word for word in (w.strip("'") for w in words) if word)


class SpeechTokenizer:
    """One token a character of `alphabet`, after the three special ones.

    Args:
        alphabet: the characters, each once.

    Raises:
        ValueError: an empty alphabet, or a character that stands twice.

    Example:
        >>> tokenizer = SpeechTokenizer(" abc")
        >>> tokenizer.encode("cab"), tokenizer.decode([6, 4, 5])
        ([6, 4, 5], 'cab')
    """

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(
                f"alphabet has {len(alphabet)} characters, {len(set(alphabet))} of them different; give each once"
            )
        self.alphabet = alphabet
        self._ids = {character: FIRST_CHARACTER + i for i, character in enumerate(alphabet)}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> SpeechTokenizer:
        """Return a tokenizer of all characters of `texts`."""
        return cls("".join(sorted(set().union(*(set(text) for text in texts)))))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the three special ones included."""
        return FIRST_CHARACTER + len(self.alphabet)

    @property
    def sha256(self) -> str:
        """Digest of `to_dict()`."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a normalised text, without BOS and EOS.

        Raises:
            ValueError: a character outside the alphabet.
        """
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            raise ValueError(f"{text!r} has characters outside the alphabet {self.alphabet!r}: {unknown}")
        return [self._ids[character] for character in text]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens up to the first EOS; blanks and BOS are left out, spaces collapsed.

        Raises:
            ValueError: a token outside the vocabulary.
        """
        text = []
        for token in map(int, tokens):
            if token == EOS:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size} tokens")
            if token >= FIRST_CHARACTER:
                text.append(self.alphabet[token - FIRST_CHARACTER])
        return " ".join("".join(text).split())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that travels in a checkpoint."""
        return {"kind": "speech", "alphabet": self.alphabet}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SpeechTokenizer:
        """Return the tokenizer whose `to_dict()` gave `data`.

        Raises:
            ValueError: `data` is of another kind.
        """
        if data.get("kind") != "speech":
            raise ValueError(f"this is no tokenizer of a speech model: kind is {data.get('kind')!r}, not 'speech'")
        return cls(data["alphabet"])
