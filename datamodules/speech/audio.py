"""Sound from files and arrays, always float32 mono at 16 kHz.

- soundfile (libsndfile) reads WAV, FLAC, OGG and MP3; soxr resamples. Both come with the extra `speech`.
- The rate is always read, never assumed: an array without one is refused.
- A WAV file that is shorter than its header says was cut off by a full disk or a broken transfer. libsndfile reads
  what is there and says nothing; here it is an error.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.errors import MissingFileError, UnreadableFileError
from cubelet.common.optional_imports import import_optional

SAMPLE_RATE = 16_000
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")
UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what a program writes into a WAV header when it writes to a pipe


def read_audio(source: str | Path | np.ndarray, rate: int | None = None) -> np.ndarray:
    """Return the sound of a file or an array.

    Args:
        source: path of a WAV, FLAC, OGG or MP3 file, or samples (n,) or (n, channels): floating point in −1 … 1, or
            integers over the range of their type.
        rate: samples a second of an array; a file's own is read.

    Returns:
        (n,) float32 in −1 … 1 at 16 kHz; channels are averaged, which is reported once.

    Raises:
        MissingFileError: no such file.
        UnreadableFileError: no audio, or a WAV file that is shorter than its header says.
        ValueError: an array without a rate, or of another shape.

    Example:
        >>> read_audio(np.zeros(8000, dtype=np.int16), rate=8000).shape
        (16000,)
    """
    if isinstance(source, np.ndarray):
        if rate is None:
            raise ValueError("an array of samples has no rate: give rate=, in samples a second (16000, 44100, …)")
        return _to_mono_16k(_to_float(source), rate, "the array")
    path = Path(source)
    soundfile = import_optional("soundfile", "speech")
    if not path.is_file():
        raise MissingFileError(f"there is no audio file {path}")
    check_wav_size(path)
    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UnreadableFileError(f"{path} cannot be read as audio ({error}); give WAV, FLAC, OGG or MP3") from error
    return _to_mono_16k(samples, own_rate, str(path))


def audio_samples(path: str | Path) -> int:
    """Return the length of a file at 16 kHz, from its header.

    Raises:
        MissingFileError, UnreadableFileError: as `read_audio`.
    """
    soundfile = import_optional("soundfile", "speech")
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no audio file {path}")
    check_wav_size(path)
    try:
        header = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UnreadableFileError(f"{path} cannot be read as audio ({error}); give WAV, FLAC, OGG or MP3") from error
    return int(np.ceil(header.frames * SAMPLE_RATE / header.samplerate))


def check_wav_size(path: Path) -> None:
    """Raise UnreadableFileError where a RIFF file ends before its data does; files of other kinds pass."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                there = end - file.tell()
                if size not in UNKNOWN_SIZES and size > there:
                    raise UnreadableFileError(
                        f"{path} was cut off: its header announces {size:,} bytes of sound, {there:,} are there; "
                        "copy or record it again"
                    )
                return
            file.seek(size + size % 2, os.SEEK_CUR)


def _to_float(samples: np.ndarray) -> np.ndarray:
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples have shape {samples.shape}; expected (n,) or (n, channels)")
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        middle = 0 if info.min < 0 else (info.max + 1) // 2
        return ((samples.astype(np.float64) - middle) / (info.max + 1 - middle)).astype(np.float32)
    return samples.astype(np.float32)


def _to_mono_16k(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    if not rate > 0:
        raise ValueError(f"rate {rate} of {name} must be above 0")
    if samples.ndim == 2:
        if samples.shape[1] > 1:
            _report_channels(name, samples.shape[1])
        samples = samples.mean(axis=1, dtype=np.float32)  # (n,)
    if not np.isfinite(samples).all():
        raise UnreadableFileError(f"{name} has samples that are NaN or infinite")
    if rate == SAMPLE_RATE or not len(samples):
        return np.ascontiguousarray(samples)
    soxr: Any = import_optional("soxr", "speech")
    return soxr.resample(samples, rate, SAMPLE_RATE)


_reported_channels = False


def _report_channels(name: str, channels: int) -> None:
    global _reported_channels
    if not _reported_channels:
        _reported_channels = True
        warnings.warn(f"{name} has {channels} channels; they are averaged, here and in later files", stacklevel=4)
