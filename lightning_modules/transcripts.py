"""What a speech model hands out: texts, the times of their words, and samples for pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cubelet.datamodules.speech import SpeechTokenizer
from cubelet.datamodules.speech.tokenizer import FIRST_CHARACTER


class Word(NamedTuple):
    """A word and when it was said, in seconds."""

    word: str
    start: float
    end: float


class SpeechSample(NamedTuple):
    """An utterance, what each head writes, and where the last layer of the decoder looks: weights (t, s)."""

    reference: str
    best: str
    attention: str
    ctc: str
    wave: np.ndarray
    rate: int
    weights: np.ndarray


class Transcript(NamedTuple):
    """A text and the times of its words; no times where CTC cannot say the text."""

    text: str
    words: list[Word]


def word_spans(
    tokenizer: SpeechTokenizer, tokens: Sequence[int], starts: Sequence[int], ends: Sequence[int]
) -> list[tuple[str, int, int]]:
    """Return the words of a text with the states of their first and last characters.

    Args:
        tokenizer: of the tokens.
        tokens: (t,) of the text. starts, ends: at least (t,), each token's first state and the one behind its last; −1
            where a token has none.
    """
    spans: list[tuple[str, int, int]] = []
    is_open = False
    for token, start, end in zip(tokens, starts, ends, strict=False):
        character = tokenizer.alphabet[token - FIRST_CHARACTER]
        if start < 0:
            return []
        if character == " ":
            is_open = False
            continue
        word, first, _ = spans.pop() if is_open else ("", start, 0)
        spans.append((word + character, first, end - 1))
        is_open = True
    return spans
