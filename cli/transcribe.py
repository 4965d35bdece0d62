"""`cubelet transcribe`: write down what audio files say, by a checkpoint, nothing else needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch

from cubelet.common.checks import check_choice
from cubelet.common.errors import ConfigError
from cubelet.common.files import write_atomic
from cubelet.datamodules.speech.audio import SAMPLE_RATE, read_audio
from cubelet.datamodules.speech.batches import cut_batches
from cubelet.lightning_modules.speech_recognizer import SpeechRecognizer
from cubelet.lightning_modules.transcripts import Transcript
from cubelet.models.transcription import Method

from .parser import Parser
from .quiet import quiet_dependencies
from .run import resolve_checkpoint

Format = Literal["txt", "jsonl", "srt"]
CUE_SECONDS, CUE_CHARACTERS, CUE_PAUSE = 6.0, 64, 0.8  # longest subtitle, and the silence that ends one


def transcribe(
    files: list[str],
    ckpt_path: str = "last",
    timestamps: bool = False,
    format: Format = "txt",
    method: Method | None = None,
    output_dir: str | None = None,
    batch_seconds: float = 60.0,
    root: str = "runs",
) -> None:
    """Write down what audio files say.

    Args:
        files: WAV, FLAC, OGG or MP3.
        ckpt_path: a checkpoint of a SpeechRecognizer, or `last` for the newest valid one under `root`.
        timestamps: also say when each word begins and ends, in seconds.
        format: `txt`, `jsonl` (an object a file) or `srt` (subtitles).
        method: `joint`, `attention`, `ctc` or `beam`; the model's own by default.
        output_dir: write `NAME.FORMAT` for each file there instead of printing.
        batch_seconds: padded seconds of sound that are decoded together.
        root: where `last` looks.
    """
    check_choice("format", format, Format)
    if format == "srt" and len(files) > 1 and output_dir is None:
        raise ConfigError(f"{len(files)} files of subtitles cannot be printed as one: give --output_dir=FOLDER")
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds {batch_seconds} must be above 0")
    model = load_recognizer(ckpt_path, root)
    waves = [read_audio(file) for file in files]
    samples = np.array([len(wave) for wave in waves])
    found: list[Transcript] = [Transcript("", []) for _ in files]
    order = np.argsort(-samples, kind="stable")
    for batch in cut_batches(samples, order, round(batch_seconds * SAMPLE_RATE)):
        chosen = [waves[index] for index in batch]
        for index, transcript in zip(batch, model.transcribe_words(chosen, method=method), strict=True):
            found[index] = transcript
    for file, wave, transcript in zip(files, waves, found, strict=True):
        text = render(file, len(wave) / SAMPLE_RATE, transcript, format, timestamps)
        if output_dir is None:
            prefix = f"{file}\t" if format == "txt" and len(files) > 1 and not timestamps else ""
            sys.stdout.write(prefix + text)
        else:
            write_atomic(Path(output_dir) / f"{Path(file).stem}.{format}", text)


def load_recognizer(ckpt_path: str, root: str) -> SpeechRecognizer:
    """Return the model of a checkpoint, on the best device there is.

    Raises:
        ConfigError: no checkpoint, or one of another kind of model.
    """
    path = resolve_checkpoint(ckpt_path, root)
    if path is None:
        raise ConfigError(f"--ckpt_path={ckpt_path} needs a run; give the path of a checkpoint, or `last`")
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if (stored.get("tokenizer") or {}).get("kind") != "speech":
        raise ConfigError(f"{path} holds no SpeechRecognizer; give the checkpoint of a run of configs/speech.yaml")
    model = SpeechRecognizer.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return model.to(L.Fabric(accelerator="auto", devices=1).device).eval()


def render(file: str, seconds: float, transcript: Transcript, format: Format, timestamps: bool) -> str:
    """Return one file's transcript in a format, with a newline at its end."""
    if format == "jsonl":
        row = {"file": file, "seconds": round(seconds, 3), "text": transcript.text}
        if timestamps:
            row["words"] = [w._asdict() for w in transcript.words]
        return json.dumps(row, ensure_ascii=False) + "\n"
    if format == "srt":
        return "".join(
            f"{number}\n{clock(start)} --> {clock(end)}\n{text}\n\n"
            for number, (start, end, text) in enumerate(cues(transcript), 1)
        )
    if timestamps:
        return f"{file}\n" + "".join(f"{w.start:8.2f} {w.end:8.2f}  {w.word}\n" for w in transcript.words)
    return transcript.text + "\n"


def cues(transcript: Transcript) -> list[tuple[float, float, str]]:
    """Return subtitles (start, end, text): words together until a pause, six seconds or 64 characters."""
    found: list[tuple[float, float, str]] = []
    for word, start, end in transcript.words:
        if found:
            first, last, text = found[-1]
            fits = end - first <= CUE_SECONDS and len(text) + 1 + len(word) <= CUE_CHARACTERS
            if start - last < CUE_PAUSE and fits:
                found[-1] = (first, end, f"{text} {word}")
                continue
        found.append((start, end, word))
    return found


def clock(seconds: float) -> str:
    """Return a time as subtitles write it.

    Example:
        >>> clock(3661.5)
        '01:01:01,500'
    """
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"


def transcribe_command(arguments: Sequence[str]) -> None:
    """Parse `arguments` and transcribe."""
    quiet_dependencies()
    parser = Parser(prog="cubelet transcribe", description="Write down what audio files say.")
    parser.add_argument("files", nargs="+", type=str, metavar="FILES", help="WAV, FLAC, OGG or MP3.")
    parser.add_function_arguments(transcribe, skip={"files"}, as_positional=False)
    # A bare --timestamps means yes; jsonargparse wants a value.
    given = parser.parse_args(["--timestamps=true" if a == "--timestamps" else a for a in arguments])
    transcribe(**{name: value for name, value in given.as_dict().items() if name != "config"})
