"""One utterance, one corpus: what every source of speech is turned into, and how its sound is read."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .audio import SAMPLE_RATE, read_audio


@dataclass(frozen=True)
class Utterance:
    """What was said, and where the sound lies.

    Attributes:
        text: the transcript, normalised.
        samples: length at 16 kHz (for a file of another rate: after resampling, to the sample).
        path: an audio file, or a `.npy` file of int16 samples at 16 kHz that holds many utterances.
        start: of the first sample, in a `.npy` file.
        speaker: whose voice, where that is known.
        place: where the transcript stands (`file:line`), for messages.

    Example:
        >>> Utterance("turn on the light", samples=24_000, path="light.wav").seconds
        1.5
    """

    text: str
    samples: int
    path: str
    start: int = 0
    speaker: str = ""
    place: str = ""

    @property
    def seconds(self) -> float:
        """Length."""
        return self.samples / SAMPLE_RATE

    def read(self) -> np.ndarray:
        """Return the sound: (samples,) float32 in −1 … 1, at 16 kHz."""
        if self.path.endswith(".npy"):
            stored = _open_samples(self.path)[self.start : self.start + self.samples]
            return stored.astype(np.float32) / 32768.0
        return read_audio(self.path)


@functools.lru_cache(maxsize=16)
def _open_samples(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class SpeechCorpus:
    """Utterances of a corpus by split.

    Attributes:
        name: of the corpus, or of its folder.
        train: what is learned from.
        held_out: name of a split → its utterances; the first one is what a fit validates on.
        left_out: reason → places (`file:line`) of utterances that cannot be used.
    """

    name: str
    train: Sequence[Utterance]
    held_out: Mapping[str, Sequence[Utterance]]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of transcripts and lengths of all splits, in their order."""
        hashed = hashlib.sha256()
        for split, utterances in (("train", self.train), *self.held_out.items()):
            rows = [split, *((u.text, u.samples) for u in utterances)]
            hashed.update(json.dumps(rows, ensure_ascii=True).encode())
        return hashed.hexdigest()


def file_place(path: Path | str, line: int) -> str:
    """Return `name:line` for messages."""
    return f"{Path(path).name}:{line}"
