"""Does it help in speech? Encoder positions, pure attention, Whisper's architecture and `prompts`, in a bare loop.

    python benchmarks/speech_quality.py --only positions [--steps 500 4000] [--minutes 60]
    python benchmarks/speech_quality.py --only "pure attention" --steps 2000
    python benchmarks/speech_quality.py --table      # what is finished so far, as Markdown

Data, model, optimizer and schedule are those of configs/speech.yaml; every row says what it changes. Rows of one seed
are paired: the same batches, and every parameter that two models share starts the same (`init_seed`). Error rates are
those of the whole held-out splits, bounded by the encoder's states. Every finished run is appended to the results and
skipped when the command is given again, so it can be stopped at any time.

- `sinusoids` are added to the stem's states; their scale is chosen first, one run each with a seed of its own (1000).
- `whisper` is transformers' WhisperForConditionalGeneration of the same widths, heads, layers and tokens, from scratch,
  by the same optimizer, without CTC. It takes input of one length whatever was said: here the length of the corpus'
  longest utterance, its cheapest form; its pretrained 30 s would make a step several times as dear. `--seconds` stops
  it there instead of at a number of steps.
- `prompts` are read where Debian's packages put them; scored by CTC, since attention is useless there.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from cubelet.datamodules import SpeechDataModule
from cubelet.lightning_modules import SpeechRecognizer
from cubelet.lightning_modules.component_config import from_config
from cubelet.lightning_modules.error_rates import ErrorRates
from cubelet.models.blocks import ShortConvBlock
from cubelet.models.embeddings import LearnedSinusoidal
from cubelet.models.log_mel import LogMel, SpecAugment
from cubelet.models.rotary import CombinedRotary
from cubelet.models.transcriber import BOS, EOS, teacher_forcing
from cubelet.models.transcription import Method, forbid_specials, read_texts, transcribe
from cubelet.optimizers import WarmupCosine, parameter_groups

ROOT = Path(__file__).parents[1]
SEEDS, SEARCH_SEED, CLIP = (0, 1, 2, 3, 4), 1000, 1.0
SEARCH_STEPS = 500  # longer trainings take the scale that was best in those
SCALES = (1.0, 4.0, 12.0, 36.0)  # of sinusoids; 12 = √dims is the length of a state of unit RMS
LANGUAGES = ("en", "es", "fr", "it", "ru")


class Row(NamedTuple):
    """What a run changes in model and data, and how it is decoded."""

    model: dict[str, Any]
    data: dict[str, Any] = {}
    method: Method = "joint"


def sinusoids(scale: float) -> dict[str, Any]:
    return {"rotary": None, "position_embedding": partial(LearnedSinusoidal, scale=scale)}


POSITIONS = {
    "RoPE": Row({}),
    "combined": Row({"rotary": CombinedRotary}),
    "sinusoids": Row({}),  # at the best scale of the search
    "none": Row({"rotary": None}),
    "centred convolution": Row({"block": partial(ShortConvBlock, taps=3)}),
}
PROMPTS = {"corpus": "prompts"}
AUGMENTED = {"augment": SpecAugment}
ROWS = {
    **POSITIONS,
    **{f"sinusoids × {scale:g}": Row(sinusoids(scale), method="ctc") for scale in SCALES},
    "pure attention": Row({"ctc_weight": 0.0}, method="attention"),
    "whisper": Row({}, method="attention"),
    "prompts en": Row(AUGMENTED, PROMPTS, "ctc"),
    "prompts en, speed": Row(AUGMENTED, {**PROMPTS, "speed_perturbation": True}, "ctc"),
    "prompts en, speed, CTC alone": Row(
        {**AUGMENTED, "ctc_weight": 1.0}, {**PROMPTS, "speed_perturbation": True}, "ctc"
    ),
    "prompts all, speed": Row(AUGMENTED, {**PROMPTS, "languages": LANGUAGES, "speed_perturbation": True}, "ctc"),
    "prompts all, speed, CTC alone": Row(
        {**AUGMENTED, "ctc_weight": 1.0},
        {**PROMPTS, "languages": LANGUAGES, "speed_perturbation": True},
        "ctc",
    ),
}
HEADS = ("best", "ctc", "attention")


def experiment() -> tuple[dict[str, Any], dict[str, Any], partial[Any], partial[Any]]:
    """Data and model settings, optimizer and schedule of configs/speech.yaml."""
    read = yaml.safe_load((ROOT / "configs" / "speech.yaml").read_text())
    model = read["model"]
    optimizer, scheduler = (from_config(model.pop(key)) for key in ("optimizer", "scheduler"))
    named = {k: {"class_path": v} if isinstance(v, str) and v.startswith("cubelet.") else v for k, v in model.items()}
    return read["data"], {key: from_config(value) for key, value in named.items()}, optimizer, scheduler


def endless(data: SpeechDataModule) -> Iterator[dict[str, Any]]:
    loader = data.train_dataloader()
    while True:
        yield from loader


class Whisper(nn.Module):
    """transformers' Whisper over our log-mel frames and tokens, with what the loop below asks of a model."""

    def __init__(self, data: SpeechDataModule, settings: dict[str, Any]) -> None:
        super().__init__()
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        dims, heads = settings["dims"], settings["heads"]
        self.log_mel, self.tokenizer = LogMel(), data.tokenizer
        utterances = [*data.data.train, *(u for rows in data.data.held_out.values() for u in rows)]
        states = math.ceil(max(u.samples for u in utterances) / (2 * self.log_mel.hop))
        self.samples = states * 2 * self.log_mel.hop
        config = WhisperConfig(
            vocab_size=data.vocab_size, d_model=dims, num_mel_bins=80, dropout=settings["dropout"],
            encoder_layers=settings["encoder_layers"], decoder_layers=settings["decoder_layers"],
            encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * dims,
            decoder_ffn_dim=4 * dims, max_source_positions=states, max_target_positions=448,
            pad_token_id=0, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS, apply_spec_augment=False,
            begin_suppress_tokens=None,
        )  # fmt: skip
        self.whisper = WhisperForConditionalGeneration(config)

    def frames(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(b, 80, n) frames, padded as Whisper's own extractor pads silence, and their numbers (b,)."""
        waves = F.pad(batch["waves"], (0, self.samples))[:, : self.samples]
        frames, _ = self.log_mel(waves, torch.full((len(waves),), self.samples))
        return frames.transpose(1, 2), batch["wave_lengths"] // self.log_mel.hop

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Nats a character, as `SpeechRecognizer` counts them."""
        inputs, targets = teacher_forcing(batch["tokens"], batch["token_lengths"])
        logits = self.whisper(input_features=self.frames(batch)[0], decoder_input_ids=inputs).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    def texts(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        frames, counts = self.frames(batch)
        limits = (counts + 3) // 4  # the states that our encoder would have
        encoded = self.whisper.model.encoder(frames)
        tokens, cache = torch.full((len(frames), 1), BOS), None
        for _ in range(int(limits.max())):
            out = self.whisper(
                encoder_outputs=encoded, decoder_input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            tokens = torch.cat([tokens, forbid_specials(tokens, out.logits[:, -1]).argmax(-1, keepdim=True)], 1)
            if (tokens == EOS).any(1).all():
                break
        return {"best": [self.tokenizer.decode(text) for text in read_texts(tokens[:, 1:], limits)]}


class Ours(nn.Module):
    """A `SpeechRecognizer` with what the loop below asks of a model."""

    def __init__(self, data: SpeechDataModule, settings: dict[str, Any], method: Method, seed: int) -> None:
        super().__init__()
        self.recognizer = SpeechRecognizer(data.vocab_size, **settings, decoding=None, init_seed=seed)
        self.tokenizer, self.method = data.tokenizer, method

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.recognizer.training_losses(batch)[0]

    def texts(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        model = self.recognizer.transcriber
        output = model.encode(batch["waves"], batch["wave_lengths"])
        options = {"ctc_weight": 0.0, "veto": False} if self.recognizer.ctc_weight == 0 else {}
        found = transcribe(model, output, self.method, **options)
        heads = HEADS if self.method == "joint" else ("best", self.method)
        return {head: [self.tokenizer.decode(text) for text in getattr(found, head)] for head in heads}


@torch.no_grad()
def measure(model: Whisper | Ours, data: SpeechDataModule) -> dict[str, float]:
    """Error rates in percent of every held-out split, whole."""
    model.eval()
    found: dict[str, float] = {}
    for loader, split in zip(data.test_dataloader(), data.splits, strict=True):
        rates, texts = ErrorRates(), {}
        for batch in loader:
            texts = model.texts(batch)
            rates.update(texts, batch["texts"])
        measured = {"best": "wer", **{head: f"{head}_wer" for head in texts if head != "best"}}
        names = {name for wer in measured.values() for name in (wer, wer.replace("wer", "cer"))}
        values = rates.compute()
        found |= {f"{split}_{name}": round(100 * float(values[name]), 2) for name in sorted(names)}
    model.train()
    return found


def unseen_words(data: SpeechDataModule) -> dict[str, float]:
    """Share in percent of each held-out split's words that the training texts do not have."""
    known = {word for u in data.data.train for word in u.text.split()}
    words = {split: [w for u in rows for w in u.text.split()] for split, rows in data.data.held_out.items()}
    return {
        f"{split}_unseen": round(100 * statistics.mean(w not in known for w in ws), 1) for split, ws in words.items()
    }


def run(name: str, row: Row, seed: int, steps: int, seconds: float) -> dict[str, Any]:
    """Train once and return the row for the results file."""
    data_settings, model_settings, make_optimizer, make_scheduler = experiment()
    torch.manual_seed(seed)
    data = SpeechDataModule(**{**data_settings, **row.data}, seed=seed)
    settings = {**model_settings, **row.model}
    model = Whisper(data, settings) if name == "whisper" else Ours(data, settings, row.method, seed)
    optimizer = make_optimizer(parameter_groups(model))
    warmup = min(make_scheduler.keywords["warmup"], steps // 5)
    scheduler = WarmupCosine(optimizer, **{**make_scheduler.keywords, "warmup": warmup, "total": steps})
    start, batches, done, loss = time.process_time(), endless(data), 0, torch.zeros(())
    model.train()
    while done < steps and time.process_time() - start < seconds:
        loss = model.loss(next(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        done += 1
    cpu = time.process_time() - start
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "steps": done, "cpu_seconds": round(cpu, 1)}
    rates = {**measure(model, data), **(unseen_words(data) if row.data else {})}
    return {"row": name, "seed": seed, "planned_steps": steps, **counts, "train_loss": round(float(loss), 4), **rates}


def is_whole(row: dict[str, Any]) -> bool:
    """Whether a run took all of its steps; otherwise `--seconds` ended it."""
    return row["steps"] == row["planned_steps"]


class Results:
    """The finished runs, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, name: str, seed: int, steps: int, whole: bool = True) -> dict[str, Any] | None:
        """The finished run; with `whole` none that `--seconds` ended."""
        wanted = (name, seed, steps)
        found = (row for row in self.rows if (row["row"], row["seed"], row["planned_steps"]) == wanted)
        return next((row for row in found if not whole or is_whole(row)), None)

    def add(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def best_scale(self, steps: int) -> float | None:
        """The scale of the search with the fewest errors of CTC; None where it is not complete."""
        found = {s: row["texts_ctc_wer"] for s in SCALES if (row := self.get(f"sinusoids × {s:g}", SEARCH_SEED, steps))}
        return min(found, key=lambda s: found[s]) if len(found) == len(SCALES) else None


def plan(steps: int, only: list[str] | None) -> Iterator[tuple[str, int]]:
    """Rows and seeds in the order of their runs: seed by seed, so that what is finished is paired."""
    if steps <= SEARCH_STEPS and (not only or {"positions", "sinusoids"} & set(only)):
        yield from ((f"sinusoids × {scale:g}", SEARCH_SEED) for scale in SCALES)
    chosen = [name for name in POSITIONS if not only or "positions" in only or name in only]
    yield from ((name, seed) for seed in SEEDS for name in chosen)
    others = [name for name in ROWS if name not in POSITIONS and "×" not in name]
    yield from ((name, 0) for name in others if not only or name in only)


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(values)]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(results: Results) -> str:
    """Markdown: error rates of every row, and of the encoder's positions the differences to RoPE seed by seed."""
    lines = [
        "| row | steps | seeds | CPU s | word errors, texts | voices | of CTC, texts | voices | character errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    paired = [
        "| encoder | steps | seeds | CTC word errors on texts − RoPE's [95 %] | voices | as decoded, texts | voices |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = sorted({(list(ROWS).index(r["row"]), r["planned_steps"], is_whole(r), r["row"]) for r in results.rows})
    for _, steps, whole, name in keys:
        rows = [r for r in results.rows if (r["row"], r["planned_steps"], is_whole(r)) == (name, steps, whole)]

        def mean(key: str, rows: list[dict[str, Any]] = rows) -> str:
            values = [row[key] for row in rows if key in row]
            return f"{statistics.mean(values):.1f}" if values else ""

        cells = [mean(key) for key in ("texts_wer", "voices_wer", "texts_ctc_wer", "voices_ctc_wer", "texts_cer")]
        done = f"{statistics.mean(row['steps'] for row in rows):.0f}"
        lines.append(f"| {name} | {done} | {len(rows)} | {mean('cpu_seconds')} | {' | '.join(cells)} |")
        pairs = [(row, base) for row in rows if (base := results.get("RoPE", row["seed"], steps))]
        if whole and name in POSITIONS and name != "RoPE" and pairs:
            cells = [
                interval([row[key] - base[key] for row, base in pairs])
                for key in ("texts_ctc_wer", "voices_ctc_wer", "texts_wer", "voices_wer")
            ]
            paired.append(f"| {name} | {steps} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n\n".join("\n".join(part) for part in (lines, paired))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "speech_quality.jsonl")
    parser.add_argument("--steps", type=int, nargs="+", default=[500])
    parser.add_argument("--seconds", type=float, default=math.inf, help="end a training after so many CPU-seconds")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--only", nargs="*", help="names of rows; `positions` for all of the encoder's")
    parser.add_argument("--seeds", type=int, nargs="*", help="only these")
    parser.add_argument("--table", action="store_true", help="print the tables of finished runs and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results, begun = Results(options.results), time.monotonic()
    for steps in [] if options.table else options.steps:
        for name, seed in plan(steps, options.only):
            row = ROWS[name]
            if options.seeds and seed not in (*options.seeds, SEARCH_SEED):
                continue
            if name == "sinusoids":
                scale = results.best_scale(steps) or results.best_scale(SEARCH_STEPS)
                row = row._replace(model=sinusoids(scale or 1.0))
            if name in POSITIONS and steps < 1000:  # attention has not found its way yet: CTC tells them apart
                row = row._replace(method="ctc")
            whole = options.seconds == math.inf
            if results.get(name, seed, steps, whole) is None and time.monotonic() - begun < 60 * options.minutes:
                results.add(run(name, row, seed, steps, options.seconds))
                print(json.dumps(results.rows[-1]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
