"""The corpus `commands`: synthetic requests, numbers, times and dates in 42 voices, made on this machine.

- Every utterance is a pure function of (seed, split, index): text, voice, speed, pitch, noise and sound, to the byte.
- Held out are texts (one in ten, by their hash) and voices (6 of 42). `texts` has known voices say held-out texts,
  `voices` has held-out voices say held-out texts.
- A third of the utterances lies in noise, white to brown, 5 to 30 dB below the speech: a model that has only ever
  heard noise without speech would take it for silence.
- A fifth is said word by word, with pauses of 10 to about 400 ms: a model that has only ever heard fluent speech puts
  no spaces there, and places words a few states away from where they are said.
- Synthetic and of a closed vocabulary: it shows that training, decoding and measuring work. A model trained on it does
  not recognise people.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cubelet.common.optional_imports import import_optional
from cubelet.common.seeds import derive_seed

from .audio import SAMPLE_RATE
from .cache import build_folder
from .espeak import ESPEAK_RATE, synthesize
from .grammar import sentence
from .utterance import SpeechCorpus, Utterance

FORMAT = 2  # one more whenever sentences, voices or sound change
ACCENTS = ("en", "en-US", "en-US-nyc", "en-029", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan")
VARIANTS = ("m1", "m3", "m7", "f2", "f4", "klatt")
VOICES = tuple(f"gmw/{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)
# One of each variant, each of another accent: a held-out voice is a known accent and a known variant, but never both.
HELD_OUT_VOICES = tuple(f"gmw/{accent}+{variant}" for accent, variant in zip(ACCENTS, VARIANTS, strict=False))
TRAINING_VOICES = tuple(voice for voice in VOICES if voice not in HELD_OUT_VOICES)
SPLITS = ("train", "texts", "voices")
CHUNK = 200  # utterances made by one task of a process
PAUSED, LONGEST_PAUSE = 0.2, 40  # share of utterances said word by word; their longest pauses, in units of 10 ms


def is_held_out(text: str, share: int = 10) -> bool:
    """Return whether a text is one of the `share`-th part that is never trained on; by its hash alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % share == 0


def make_utterance(seed: int, split: str, index: int) -> tuple[str, str, np.ndarray]:
    """Return text, voice and sound (n,) int16 at 16 kHz of one utterance; a pure function of the arguments."""
    soxr = import_optional("soxr", "speech")
    draw = np.random.default_rng(derive_seed(seed, "commands", split, index))
    text = sentence(draw)
    while is_held_out(text) == (split == "train"):
        text = sentence(draw)
    voices = HELD_OUT_VOICES if split == "voices" else TRAINING_VOICES
    voice = voices[int(draw.integers(len(voices)))]
    speech = synthesize(
        text,
        voice,
        speed=int(draw.integers(130, 211)),
        pitch=int(draw.integers(30, 71)),
        pitch_range=int(draw.integers(30, 71)),
        word_gap=draw_word_gap(draw),
        seed=int(draw.integers(1, 1 << 31)),
    )
    wave = soxr.resample(speech.astype(np.float32) / 32768, ESPEAK_RATE, SAMPLE_RATE)
    before, after = (int(draw.integers(SAMPLE_RATE * 2 // 5)) for _ in range(2))
    wave = np.pad(wave, (before, after))
    if draw.random() < 1 / 3:
        level = float(np.sqrt(np.mean(wave**2))) * 10 ** (-draw.uniform(5, 30) / 20)
        wave = wave + level * coloured_noise(draw, len(wave))
    wave = wave * (10 ** (-draw.uniform(0, 20) / 20) / max(1e-3, float(np.abs(wave).max())))
    return text, voice, np.round(wave * 32767).astype(np.int16)


def draw_word_gap(draw: np.random.Generator) -> int:
    """Return the pause between the words of an utterance, in eSpeak's units of 10 ms: mostly 0."""
    return int(draw.integers(1, LONGEST_PAUSE + 1)) if draw.random() < PAUSED else 0


def coloured_noise(draw: np.random.Generator, samples: int) -> np.ndarray:
    """Return noise (samples,) float32 of unit power: white, or low-passed by a random amount."""
    step = 1 << max(0, samples.bit_length() - 4)
    size = max(2, -(-samples // step) * step)  # 8 … 16 times a power of two: a prime length would take 5 × the time
    corner = 10 ** draw.uniform(2, 4)  # Hz
    spectrum = draw.standard_normal((size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
    spectrum /= (1 + np.fft.rfftfreq(size, 1 / SAMPLE_RATE) / corner).astype(np.float32)
    noise = np.fft.irfft(spectrum, size)[:samples]
    return (noise / max(1e-9, float(np.sqrt(np.mean(noise**2))))).astype(np.float32)


def load_commands(cache: Path, utterances: int = 8000, held_out: int = 600, seed: int = 0) -> SpeechCorpus:
    """Return the corpus, made in `cache` at first: 8,000 utterances are 4.8 hours, 40 CPU-seconds and 0.6 GB.

    Args:
        cache: folder of all caches.
        utterances: of the training split.
        held_out: of each of the two held-out splits.
        seed: of everything in it.

    Raises:
        MissingExtraError: the extra `speech` is not installed.
        DiskError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps([FORMAT, utterances, held_out, seed]).encode()).hexdigest()[:16]
    sizes = dict(zip(SPLITS, (utterances, held_out, held_out), strict=True))

    def fill(folder: Path) -> None:
        # Forked where that is possible: no second import of torch, and none of the caller's script.
        method = "fork" if "fork" in get_all_start_methods() else "spawn"
        with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context(method)) as pool:
            for split, size in sizes.items():
                starts = range(0, size, CHUNK)
                stops = (min(start + CHUNK, size) for start in starts)
                chunks = pool.map(make_chunk, [seed] * len(starts), [split] * len(starts), starts, stops)
                write_split(folder, split, chunks)

    for package in ("espeakng_loader", "soxr"):  # said here, not by a process of the pool
        import_optional(package, "speech")
    folder = build_folder(cache / "speech" / f"commands-{key}", fill)
    return SpeechCorpus(
        "commands", read_split(folder, "train"), {name: read_split(folder, name) for name in SPLITS[1:]}
    )


def make_chunk(seed: int, split: str, start: int, stop: int) -> list[tuple[str, str, np.ndarray]]:
    """Return utterances `start` … `stop` − 1 of a split."""
    return [make_utterance(seed, split, index) for index in range(start, stop)]


def write_split(folder: Path, split: str, chunks: Iterable[list[tuple[str, str, np.ndarray]]]) -> None:
    """Write a split: `split.npy`, all sounds end to end, and `split.jsonl`, one line an utterance."""
    lines, place = [], 0
    with (folder / f"{split}.npy").open("wb") as file:
        _write_header(file, 0)
        for chunk in chunks:
            for text, voice, wave in chunk:
                lines.append(json.dumps({"text": text, "speaker": voice, "start": place, "samples": len(wave)}))
                file.write(wave.astype("<i2", copy=False).data)
                place += len(wave)
        file.seek(0)
        _write_header(file, place)
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_header(file: BinaryIO, samples: int) -> None:
    """The head of a `.npy` file of int16; it is as long for any number, so it can be written again at the end."""
    header = {"descr": "<i2", "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(file, header)


def read_split(folder: Path, split: str) -> list[Utterance]:
    """Return the utterances that `write_split` wrote."""
    path = str(folder / f"{split}.npy")
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Utterance(path=path, place=f"{split}.jsonl:{n}", **json.loads(line)) for n, line in enumerate(lines, 1)]
