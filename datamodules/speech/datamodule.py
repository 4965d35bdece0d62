"""`SpeechDataModule`: sounds and their texts as batches, for Lightning's Trainer or a plain loop.

The corpus is read in the constructor; what is expensive about it lies in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cubelet.common.checks import check_at_least, check_fraction
from cubelet.common.errors import ConfigError
from cubelet.common.optional_imports import import_optional
from cubelet.common.seeds import derive_seed

from ..base import ResumableDataModule
from ..ordered_loader import OrderedLoader, ResumableOrderedLoader
from ..token_cache import default_cache
from .audio import SAMPLE_RATE
from .batches import SpeechBatch, TrainingBatches, ValidationBatches, uniform
from .commands import load_commands
from .formats import load_folder
from .no_speech import make_no_speech
from .prompts import load_prompts
from .tokenizer import BLANK, SpeechTokenizer
from .usable import keep_usable, report_left_out
from .utterance import Utterance

SPEEDS = (0.9, 1.0, 1.1)  # as in Ko et al. 2015, https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html


class SpeechDataset(Dataset[dict[str, Any]]):
    """Batches of utterances, and after them items without speech; indexed by a `SpeechBatch`.

    Args:
        utterances: what is said.
        tokenizer: of their texts.
        no_speech: (n,) lengths in samples of the items without speech.
        speeds: factors of which each visit of an utterance draws one.
        seed: of the items without speech and of the factors.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokenizer: SpeechTokenizer,
        *,
        no_speech: np.ndarray | None = None,
        speeds: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        self.utterances, self.tokenizer, self.speeds, self.seed = utterances, tokenizer, tuple(speeds), seed
        spoken = np.array([u.samples for u in utterances], dtype=np.int64)
        self.samples = spoken if no_speech is None else np.concatenate([spoken, no_speech])

    def __len__(self) -> int:
        """Number of utterances and items without speech."""
        return len(self.samples)

    def __getitem__(self, batch: SpeechBatch) -> dict[str, Any]:
        waves = [self._wave(int(index), batch.place) for index in batch.indices]
        texts = [self.utterances[i].text if i < len(self.utterances) else "" for i in batch.indices]
        return {**collate_speech(waves, texts, self.tokenizer), "repeated": batch.repeated}

    def _wave(self, index: int, place: int) -> np.ndarray:
        if index >= len(self.utterances):
            return make_no_speech(derive_seed(self.seed, "no speech", index, place), int(self.samples[index]))
        wave = self.utterances[index].read()
        if len(self.speeds) > 1:
            factor = self.speeds[derive_seed(self.seed, "speed", index, place) % len(self.speeds)]
            if factor != 1.0:
                wave = import_optional("soxr", "speech").resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE)
        return wave


def pad_waves(waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return waves as one (b, n ≥ 1) float32 tensor, zero behind their ends, and their lengths (b,) int64."""
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.zeros(len(waves), max(1, int(lengths.max())))
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return padded, lengths


def collate_speech(waves: Sequence[np.ndarray], texts: Sequence[str], tokenizer: SpeechTokenizer) -> dict[str, Any]:
    """Return a batch of sounds and texts, padded at their ends.

    Returns:
        `waves` (b, n) float32, `wave_lengths` (b,) int64, `tokens` (b, t) int64 padded with 0, `token_lengths` (b,)
        int64, `texts`, the list of b texts.
    """
    padded, lengths = pad_waves(waves)
    tokens = [torch.tensor(tokenizer.encode(text), dtype=torch.int64) for text in texts]
    return {
        "waves": padded,
        "wave_lengths": lengths,
        "tokens": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=BLANK),
        "token_lengths": torch.tensor([len(row) for row in tokens]),
        "texts": list(texts),
    }


class SpeechDataModule(ResumableDataModule):
    """Batches of speech: `waves`, `wave_lengths`, `tokens`, `token_lengths`, `texts` (see `collate_speech`).

    Batches are bounded in padded seconds and their order depends on (seed, epoch, rank, index) alone (`batches.py`).
    Validation is the first held-out split; `test` measures all of them.

    Args:
        corpus: `commands`, `prompts`, or the path of a folder or manifest (`formats.py`).
        batch_seconds: bound on rows × longest row of a training batch, on each rank.
        val_batch_seconds: the same for validation and test; None for twice batch_seconds.
        utterances, held_out: sizes of `commands`: training split, and each held-out split.
        languages: of `prompts`.
        val_utterances: validate a fit on so many utterances, spread over the split; None for all. `validate` and
            `test` always measure all.
        max_seconds: longer utterances are left out.
        frame_seconds: of sound to one frame of the encoder; utterances with fewer frames than CTC needs for their
            characters are left out.
        no_speech: share of the training items without speech and with an empty text, on top of the utterances.
        speed_perturbation: each visit of an utterance plays it at 0.9, 1 or 1.1 of its speed.
        shortest_first: the first epoch goes from the shortest to the longest utterances.
        batches_per_epoch: training batches in an epoch; None for one pass.
        num_workers: processes that read ahead; 0 suits corpora that lie in the cache, files want some.
        seed: of the order of the batches, the items without speech and the speeds.
        corpus_seed: of `commands`: texts, voices and sound.
        cache_dir: where corpora lie that are made here; None for `$CUBELET_CACHE` or `~/.cache/cubelet`.

    Attributes:
        tokenizer: the `SpeechTokenizer` of all splits' characters.
        vocab_size: its number of tokens.
        splits: names of the held-out splits, in the order of the test loaders.

    Raises:
        UserError: sizes that do not fit, a corpus that is missing or empty, an extra that is not installed.

    Example:
        >>> SpeechDataModule("gone")
        Traceback (most recent call last):
        cubelet.common.errors.MissingFileError: corpus gone is neither 'commands' nor 'prompts' nor a folder or manifest
    """

    def __init__(
        self,
        corpus: str = "commands",
        batch_seconds: float = 32.0,
        *,
        val_batch_seconds: float | None = None,
        utterances: int = 8000,
        held_out: int = 600,
        languages: Sequence[str] = ("en",),
        val_utterances: int | None = None,
        max_seconds: float = 30.0,
        frame_seconds: float = 0.04,
        no_speech: float = 0.02,
        speed_perturbation: bool = False,
        shortest_first: bool = True,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        corpus_seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("utterances", utterances), ("held_out", held_out)):
            check_at_least(name, value, 1)
        check_at_least("num_workers", num_workers, 0)
        check_fraction("no_speech", no_speech)
        for name, value in (("batch_seconds", batch_seconds), ("frame_seconds", frame_seconds)):
            if not value > 0:
                raise ConfigError(f"{name} {value} must be above 0")
        self.save_hyperparameters(ignore=["cache_dir"], logger=False)
        self.corpus, self.seed, self.num_workers = str(corpus), seed, num_workers
        self.batch_seconds, self.val_batch_seconds = batch_seconds, val_batch_seconds or 2 * batch_seconds
        self.val_utterances, self.batches_per_epoch = val_utterances, batches_per_epoch
        self.frame_seconds, self.no_speech, self.shortest_first = frame_seconds, no_speech, shortest_first
        self.speeds = SPEEDS if speed_perturbation else (1.0,)
        self._sizes = (utterances, held_out, corpus_seed, tuple(languages))
        self._cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self._load(max_seconds)

    def _load(self, max_seconds: float) -> None:
        utterances, held_out, corpus_seed, languages = self._sizes
        if self.corpus == "commands":
            whole = load_commands(self._cache, utterances, held_out, corpus_seed)
        elif self.corpus == "prompts":
            whole = load_prompts(languages)
        else:
            whole = load_folder(Path(self.corpus).expanduser(), self._cache)
        slowest = max(1.0, 1.0 / min(self.speeds))
        limit = min(max_seconds, self.batch_seconds / slowest)
        self.data = keep_usable(whole, limit, self.frame_seconds * max(self.speeds))
        report_left_out(self.data)
        splits = (self.data.train, *self.data.held_out.values())
        self.tokenizer = SpeechTokenizer.from_texts(u.text for split in splits for u in split)
        self.splits = tuple(self.data.held_out)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, from construction on."""
        return self.tokenizer.vocab_size

    def train_dataloader(self) -> ResumableOrderedLoader:
        """Training batches; a resumable loader of `batches_per_epoch` batches an epoch."""
        lengths = np.array([u.samples for u in self.data.train], dtype=np.int64)
        dataset = SpeechDataset(
            self.data.train,
            self.tokenizer,
            no_speech=draw_lengths(self.seed, round(self.no_speech * len(lengths)), lengths),
            speeds=self.speeds,
            seed=self.seed,
        )
        rank, world_size = self._place()
        order = TrainingBatches(
            dataset.samples,
            round(self.batch_seconds * SAMPLE_RATE),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            shortest_first=self.shortest_first,
            batches_per_epoch=self.batches_per_epoch,
        )
        self._repeat_few(order)
        return ResumableOrderedLoader(dataset, order, **self._loading(), trained=self._counter())

    def val_dataloader(self) -> OrderedLoader:
        """The first held-out split."""
        return self._held_out_loader(self.splits[0], limited=True)

    def test_dataloader(self) -> list[OrderedLoader]:
        """Every held-out split, in the order of `splits`."""
        return [self._held_out_loader(split) for split in self.splits]

    def _held_out_loader(self, split: str, limited: bool = False) -> OrderedLoader:
        utterances = self.data.held_out[split]
        wanted = self.val_utterances if limited and self.trainer is not None and self._is_fitting() else None
        if wanted is not None and wanted < len(utterances):
            chosen = np.linspace(0, len(utterances) - 1, wanted).round().astype(int)
            utterances = [utterances[i] for i in chosen]
        dataset = SpeechDataset(utterances, self.tokenizer)
        rank, world_size = self._place()
        order = ValidationBatches(
            dataset.samples, round(self.val_batch_seconds * SAMPLE_RATE), rank=rank, world_size=world_size
        )
        return OrderedLoader(dataset, order, **self._loading())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to know of the corpus to notice another one."""
        return {
            "corpus": Path(self.corpus).name,
            "corpus_sha256": self.data.sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of another vocabulary, and to go on training on another corpus.

        Raises:
            ConfigError: says what differs.
        """
        vocabulary = (
            f"the checkpoint's alphabet is not that of corpus {Path(self.corpus).name}: its tokens mean other "
            f"characters; use the corpus it was trained on ({state_dict['corpus']})"
        )
        self._check_state(state_dict, vocabulary=vocabulary, data="corpus")


def draw_lengths(seed: int, count: int, lengths: np.ndarray) -> np.ndarray:
    """Return lengths (count,) in samples of items without speech: half as long as utterances, half from 50 ms on."""
    if not count:
        return np.empty(0, dtype=np.int64)
    u = uniform(derive_seed(seed, "no speech"), count)
    like = lengths[(u * len(lengths)).astype(np.int64)]
    # The log of a short length is uniform between 50 ms and the utterance's.
    shortest = SAMPLE_RATE // 20
    short = shortest * (np.maximum(like, shortest) / shortest) ** ((u * 7919) % 1)
    return np.where(np.arange(count) % 2 == 0, like, short.astype(np.int64))
