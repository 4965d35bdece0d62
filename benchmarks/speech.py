"""Speech, measured: error rates on whole splits, speed, word borders, silence, long sounds, log-mel.

    python benchmarks/speech.py errors CKPT [--methods joint beam attention ctc]
    python benchmarks/speech.py speed CKPT      # real-time factors, masked over unmasked decoding, batch = alone
    python benchmarks/speech.py borders CKPT    # word times on spliced digits, whose borders are known
    python benchmarks/speech.py silence CKPT    # sounds without speech
    python benchmarks/speech.py long            # 240 s, forward and backward, local over full attention
    python benchmarks/speech.py mel             # log-mel against real time, and its share of a training step

CKPT is the checkpoint of a run of configs/speech.yaml. Times are CPU-seconds of one thread; the two sides of a ratio
are measured in turn, and medians compared. Every line is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cubelet.datamodules import SpeechDataModule
from cubelet.datamodules.speech.audio import SAMPLE_RATE, read_audio
from cubelet.datamodules.speech.commands import HELD_OUT_VOICES, TRAINING_VOICES
from cubelet.datamodules.speech.espeak import ESPEAK_RATE, synthesize
from cubelet.datamodules.speech.grammar import DIGITS
from cubelet.datamodules.speech.no_speech import make_no_speech
from cubelet.lightning_modules import SpeechRecognizer
from cubelet.lightning_modules.error_rates import ErrorRates
from cubelet.models import Decoder, Encoder
from cubelet.models.attention import SlidingWindowAttention
from cubelet.models.transcriber import Transcriber
from cubelet.models.transcription import greedy_attention, transcribe


def write(**row: Any) -> None:
    """Print one result."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of each function, called in turn, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            spent = cpu_seconds(function)
            if turn:
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def load(path: str) -> SpeechRecognizer:
    return SpeechRecognizer.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


@torch.no_grad()
def errors(path: str, methods: Sequence[str]) -> None:
    """Word and character error rates of both held-out splits, every utterance."""
    model, data = load(path), SpeechDataModule()
    for loader, split in zip(data.test_dataloader(), data.splits, strict=True):
        for method in methods:
            rates, seconds, rows = ErrorRates(), 0.0, 0
            for batch in loader:
                start = time.process_time()
                output = model.transcriber.encode(batch["waves"], batch["wave_lengths"])
                found = transcribe(model.transcriber, output, method)
                seconds += time.process_time() - start
                texts = {"best": [model.tokenizer.decode(text) for text in found.best]}
                rates.update(texts, batch["texts"])
                rows += len(batch["texts"])
            values = rates.compute()
            length = sum(u.seconds for u in data.data.held_out[split])
            write(
                what="errors",
                split=split,
                method=method,
                wer=round(100 * float(values["wer"]), 2),
                cer=round(100 * float(values["cer"]), 2),
                utterances=rows,
                real_time_factor=round(seconds / length, 5),
            )


@torch.no_grad()
def speed(path: str) -> None:
    """Real-time factors in batches of 16 and alone; what a mask costs; whether a text depends on its batch."""
    model, data = load(path), SpeechDataModule()
    utterances = list(data.data.held_out["texts"])[:128]
    waves = [u.read() for u in utterances]
    length = sum(len(w) for w in waves) / SAMPLE_RATE
    by_length = sorted(range(len(waves)), key=lambda i: -len(waves[i]))
    groups = [[waves[i] for i in by_length[start : start + 16]] for start in range(0, len(waves), 16)]
    steps: dict[str, Callable[[], Any]] = {
        "everything, batch of 16": lambda: [model.transcribe(group) for group in groups],
        "everything, alone": lambda: [model.transcribe([wave]) for wave in waves[:32]],
    }
    times = in_turn(steps, 3)
    alone = sum(len(w) for w in waves[:32]) / SAMPLE_RATE
    write(what="real-time factor, batch of 16", value=round(times["everything, batch of 16"] / length, 5))
    write(what="real-time factor, alone", value=round(times["everything, alone"] / alone, 5))
    padded = torch.stack([torch.from_numpy(np.resize(w, 32_000)) for w in groups[0]])
    counts = torch.full((len(padded),), 32_000)
    output = model.transcriber.encode(padded, counts)
    shorter = output._replace(key_mask=output.key_mask.clone())
    shorter.key_mask[1:, -1:] = False  # a mask that hides next to nothing: the same work, but masked
    unmasked = output._replace(key_mask=torch.ones_like(output.key_mask))
    times = in_turn(
        {
            "encoder": lambda: model.transcriber.encode(padded, counts),
            "unmasked": lambda: greedy_attention(model.transcriber, unmasked),
            "masked": lambda: greedy_attention(model.transcriber, shorter),
        },
        7,
    )
    write(what="real-time factor, encoder", value=round(times["encoder"] / (2 * len(padded)), 5))
    write(what="masked over unmasked decoding", value=round(times["masked"] / times["unmasked"], 3))
    single = [model.transcribe([wave])[0] for wave in waves]
    together = [text for group in groups for text in model.transcribe(group)]
    different = sum(single[i] != text for i, text in zip(by_length, together, strict=True))
    write(what="texts that differ in a batch and alone", value=different, of=len(waves))


def spliced_digits(seed: int, count: int = 5) -> tuple[np.ndarray, list[str], list[tuple[float, float]]]:
    """Digits said one by one, with silence between: sound, words, and where each word begins and ends (seconds)."""
    draw = np.random.default_rng(seed)
    voices = HELD_OUT_VOICES if seed % 2 else TRAINING_VOICES
    voice = voices[int(draw.integers(len(voices)))]
    parts, words, borders, place = [], [], [], 0
    for _ in range(count):
        gap = np.zeros(int(draw.integers(2_000, 6_000)), dtype=np.float32)
        word = DIGITS[int(draw.integers(len(DIGITS)))]
        sound = read_audio(synthesize(word, voice, seed=seed + 1), ESPEAK_RATE)
        loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
        sound = sound[loud[0] : loud[-1] + 1]  # the synthesiser's own silence is no part of the word
        parts += [gap, sound]
        words.append(word)
        borders.append(((place + len(gap)) / SAMPLE_RATE, (place + len(gap) + len(sound)) / SAMPLE_RATE))
        place += len(gap) + len(sound)
    return np.concatenate([*parts, np.zeros(4_000, dtype=np.float32)]), words, borders


@torch.no_grad()
def borders(path: str, rows: int = 60) -> None:
    """How far times of known words lie outside their true borders, and from them, in frames of the encoder."""
    model = load(path)
    frame = model.transcriber.samples_per_state / SAMPLE_RATE
    made = [spliced_digits(seed) for seed in range(rows)]
    waves, texts = [wave for wave, _, _ in made], [" ".join(words) for _, words, _ in made]
    found = model.align(waves, texts)
    alone = [model.align([wave], [text])[0] for wave, text in zip(waves, texts, strict=True)]
    outside, starts, ends = [], [], []
    for (_, _, true), (_, timed) in zip(made, found, strict=True):
        for (start, end), word in zip(true, timed, strict=True):
            outside.append(max(start - word.start, word.end - end, 0.0) / frame)
            starts.append((word.start - start) / frame)
            ends.append((word.end - end) / frame)
    write(
        what="word times on spliced digits, in frames",
        words=len(outside),
        at_most_one_outside_their_borders=sum(value <= 1 for value in outside),
        largest_outside=round(max(outside), 2),
        median_start=round(statistics.median(starts), 2),
        median_end=round(statistics.median(ends), 2),
        both_within_one=sum(abs(a) <= 1 and abs(b) <= 1 for a, b in zip(starts, ends, strict=True)),
        differ_in_a_batch_and_alone=sum(a != b for a, b in zip(found, alone, strict=True)),
    )


@torch.no_grad()
def silence(path: str) -> None:
    """Texts of sounds without speech: silence, noise, hum and clicks of 50 ms to 4 s."""
    model = load(path)
    lengths = [800, 1_600, 8_000, 32_000, 64_000]
    for kind, waves in {
        "silence": [np.zeros(n, dtype=np.float32) for n in lengths],
        "no speech, seeds never trained on": [make_no_speech(10**9 + i, lengths[i % 5]) for i in range(200)],
    }.items():
        for method in ("joint", "attention", "ctc", "beam"):
            texts = model.transcribe(waves, method=method)
            write(what="no speech", kind=kind, method=method, sounds=len(waves), not_empty=sum(bool(t) for t in texts))


def long() -> None:
    """240 s of sound, forward and backward through the encoder: sliding window over full attention."""
    frames, lengths = torch.randn(1, 24_000, 80), torch.tensor([24_000])
    encoders = {"full": Encoder(80, 144, 4, 4)}
    for window in (32, 64):  # 32: configs/attention/local.yaml
        local = partial(SlidingWindowAttention, window=window)
        encoders[f"window {window}"] = Encoder(80, 144, 4, 4, attention=local)

    def step(encoder: Encoder) -> None:
        encoder(frames, lengths).states.square().mean().backward()

    times = in_turn({name: partial(step, encoder) for name, encoder in encoders.items()}, 3)
    write(what="240 s, forward and backward", **{name: round(value, 3) for name, value in times.items()})
    for name in list(times)[1:]:
        write(what=f"240 s, {name} over full", value=round(times[name] / times["full"], 3))


def mel() -> None:
    """Log-mel of a training batch, against real time and a whole training step."""
    data = SpeechDataModule()
    batch = next(iter(data.train_dataloader()))
    encoder = Encoder(80, 144, 4, 4)
    model = Transcriber(encoder, Decoder(data.vocab_size, 144, 2, 4, cross_attention=True))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        output = model.encode(batch["waves"], batch["wave_lengths"])
        texts = batch["tokens"], batch["token_lengths"]
        (0.3 * model.ctc_loss(output, *texts) + 0.7 * model.attention_loss(output, *texts)[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    times = in_turn({"mel": lambda: model.log_mel(batch["waves"], batch["wave_lengths"]), "step": step}, 9)
    seconds = batch["waves"].numel() / SAMPLE_RATE
    write(what="log-mel, times real time", value=round(seconds / times["mel"]))
    write(what="log-mel, share of a training step", value=round(times["mel"] / times["step"], 3), step=times["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["errors", "speed", "borders", "silence", "long", "mel"])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--methods", nargs="+", default=["joint", "beam", "attention", "ctc"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.what in ("long", "mel"):
        globals()[given.what]()
    elif given.checkpoint is None:
        parser.error(f"{given.what} needs the path of a checkpoint")
    elif given.what == "errors":
        errors(given.checkpoint, given.methods)
    else:
        globals()[given.what](given.checkpoint)


if __name__ == "__main__":
    main()
