"""SpeechRecognizer: what Lightning trains when the job is to write down what is said."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cubelet.common.checks import check_fraction
from cubelet.common.errors import ConfigError
from cubelet.datamodules.speech import SpeechTokenizer, normalize_text, pad_waves
from cubelet.models.attention import MultiHeadAttention
from cubelet.models.blocks import ResidualBlock
from cubelet.models.cross_attention_weights import cross_attention_weights
from cubelet.models.ctc_alignment import align_ctc
from cubelet.models.decoder import Decoder
from cubelet.models.encoder import ConvStem, Encoder, EncoderOutput
from cubelet.models.log_mel import LogMel, SpecAugment
from cubelet.models.rotary import RoPE
from cubelet.models.transcriber import Transcriber, teacher_forcing
from cubelet.models.transcription import Method, Transcripts, pad_texts, transcribe
from cubelet.models.word_borders import find_borders

from .base import Component, Layers, OptionalLayers, SequenceModule, default_optimizer
from .error_rates import HEADS, ErrorRates
from .seeded_init import initialize_by_name
from .transcripts import SpeechSample, Transcript, Word, word_spans


class SpeechRecognizer(SequenceModule):
    """A `Transcriber` with its losses, error rates, optimizer and transcription.

    Args:
        vocab_size: number of tokens; the command line links it from the data.
        dims, heads: width and attention heads of encoder and decoder.
        encoder_layers, decoder_layers: blocks of each.
        rotary, attention, block, embedding_rotary, position_embedding: components of the encoder, see `Encoder`.
        decoder_rotary, decoder_attention, decoder_block, decoder_position_embedding, cross_rotary: of the decoder,
            see `Decoder`.
        stem: of the encoder, see `Encoder`.
        mels: bands of a frame.
        augment: masks frames in training, see `SpecAugment`; None for none.
        dropout: in encoder and decoder.
        ctc_weight: share of CTC in the loss, the rest is the decoder's cross-entropy.
        decoding: `joint`, `attention` or `ctc`; what `val_wer` measures and `transcribe` does. None: by the heads that
            ctc_weight trains.
        optimizer: parameter groups → optimizer. Groups come from `cubelet.optimizers.parameter_groups`.
        scheduler: optimizer → scheduler, stepped every optimizer step; one with a `total` argument left open gets the
            run's number of optimizer steps.
        penalty_weight: factor on parameter-only penalties (orthogonality, span length).
        cost_weight: factor on activation-dependent costs (gate budgets).
        init_seed: draw every parameter from (this seed, its name); None draws from torch's generator.

    Batches are what `SpeechDataModule` gives.

    Raises:
        ValueError: sizes that do not fit together, a ctc_weight outside 0 … 1.

    Example:
        >>> model = SpeechRecognizer(31, dims=32, encoder_layers=1, decoder_layers=1, heads=2)
        >>> model.tokenizer = SpeechTokenizer(" 'abcdefghijklmnopqrstuvwxyz")
        >>> len(model.transcribe([np.zeros(16_000, dtype=np.float32), np.zeros(800, dtype=np.float32)]))
        2
    """

    units_name = "audio_seconds_per_second"

    def __init__(
        self,
        vocab_size: int,
        dims: int = 144,
        encoder_layers: int = 4,
        decoder_layers: int = 2,
        heads: int = 4,
        rotary: OptionalLayers = RoPE,
        attention: Component = MultiHeadAttention,
        block: Layers = ResidualBlock,
        embedding_rotary: Component | None = None,
        position_embedding: Callable[[int], nn.Module] | None = None,
        decoder_rotary: OptionalLayers = RoPE,
        decoder_attention: Component = MultiHeadAttention,
        decoder_block: Layers = ResidualBlock,
        decoder_position_embedding: Callable[[int], nn.Module] | None = None,
        stem: Component = ConvStem,
        mels: int = 80,
        augment: Callable[[], nn.Module] | None = SpecAugment,
        dropout: float = 0.1,
        ctc_weight: float = 0.3,
        decoding: Method | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
        penalty_weight: float = 1.0,
        cost_weight: float = 1.0,
        init_seed: int | None = None,
        cross_rotary: Component | None = None,
    ) -> None:
        super().__init__()
        parts = self.store_arguments(locals())
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight {ctc_weight} must lie between 0 (attention alone) and 1 (CTC alone)")
        check_fraction("dropout", dropout)
        if ctc_weight == 0:
            warnings.warn(
                "ctc_weight 0 trains attention alone: nothing then forces the text into the order of the sound, and "
                "small runs stay far behind (66 % word errors where 0.3 has 2 %); 0.3 is usual",
                stacklevel=2,
            )
        self.optimizer, self.scheduler = parts["optimizer"], parts["scheduler"]
        trained: Method = "attention" if ctc_weight == 0 else "ctc" if ctc_weight == 1 else "joint"
        if trained != "joint" and decoding not in (None, trained):
            raise ValueError(f"decoding {decoding!r} needs a head that ctc_weight {ctc_weight:g} does not train")
        self.ctc_weight = ctc_weight
        self.decoding: Method = decoding or trained
        self.penalty_weight, self.cost_weight = penalty_weight, cost_weight
        encoder = Encoder(
            mels,
            dims,
            encoder_layers,
            heads,
            stem=parts["stem"],
            attention=parts["attention"],
            rotary=parts["rotary"],
            block=parts["block"],
            embedding_rotary=parts["embedding_rotary"],
            position_embedding=parts["position_embedding"],
            dropout=dropout,
        )
        decoder = Decoder(
            vocab_size,
            dims,
            decoder_layers,
            heads,
            attention=parts["decoder_attention"],
            rotary=parts["decoder_rotary"],
            block=parts["decoder_block"],
            position_embedding=parts["decoder_position_embedding"],
            cross_attention=True,
            cross_rotary=parts["cross_rotary"],
            dropout=dropout,
        )
        augmentation = None if parts["augment"] is None else parts["augment"]()
        self.transcriber = Transcriber(encoder, decoder, log_mel=LogMel(mels), augment=augmentation)
        if init_seed is not None:
            initialize_by_name(self.transcriber, init_seed)
        self.val_loss_mean = MeanMetric()
        self.rates = ErrorRates()
        self.splits: Sequence[str] = ()  # names of the test loaders
        self._split, self._test_rates = 0, dict[str, Tensor]()

    @property
    def encoder(self) -> Encoder:
        """The transcriber's encoder."""
        return self.transcriber.encoder

    @property
    def decoder(self) -> Decoder:
        """The transcriber's decoder."""
        return self.transcriber.decoder

    @staticmethod
    def read_tokenizer(stored: dict[str, Any]) -> SpeechTokenizer:
        return SpeechTokenizer.from_dict(stored)

    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities of CTC's tokens, (b, s, vocab) float32; see `Transcriber.encode`."""
        return self.transcriber.ctc_log_probs(self.transcriber.encode(waves, lengths).states)

    def losses(self, batch: dict[str, Any], output: EncoderOutput | None = None) -> dict[str, Tensor]:
        """Return `loss` (nats a character, EOS counted), its parts `ctc` and `attention`, and `cost`, each 0-dim."""
        output = self.transcriber.encode(batch["waves"], batch["wave_lengths"]) if output is None else output
        texts = batch["tokens"], batch["token_lengths"]
        characters = (batch["token_lengths"] + 1).float().mean()
        ctc = self.transcriber.ctc_loss(output, *texts) / characters
        attention, cost = self.transcriber.attention_loss(output, *texts)
        attention = attention / characters
        loss = self.ctc_weight * ctc + (1 - self.ctc_weight) * attention
        cost = cost if output.cost is None else cost + output.cost
        return {"loss": loss, "ctc": ctc, "attention": attention, "cost": cost}

    def training_losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(batch)
        total = losses["loss"] + self.penalty_weight * self.transcriber.penalty() + self.cost_weight * losses["cost"]
        values = {"train_loss": losses["loss"], "train_ctc": losses["ctc"], "train_attention": losses["attention"]}
        return total, {name: value.detach() for name, value in values.items()}

    def batch_units(self, batch: dict[str, Any]) -> float:
        return batch["waves"].numel() / self.transcriber.log_mel.rate

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch["repeated"]:
            return
        output = self.transcriber.encode(batch["waves"], batch["wave_lengths"])
        losses = self.losses(batch, output)
        self.val_loss_mean.update(losses["loss"], (batch["token_lengths"] + 1).sum())
        found = self._transcribe(output, self.decoding)
        self.rates.update({head: self._decode(getattr(found, head)) for head in HEADS}, batch["texts"])

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss_mean.compute()
        self.val_loss_mean.reset()
        values = {"val_loss": loss, **{f"val_{name}": rate for name, rate in self.rates.compute().items()}}
        self.log_dict(values, prog_bar=True, sync_dist=False)

    def on_test_start(self) -> None:
        self._split, self._test_rates = 0, {}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx != self._split:
            self._close_split()
            self._split = dataloader_idx
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._close_split()
        self.log_dict(self._test_rates, sync_dist=False)

    def _close_split(self) -> None:
        """Keep the rates of the split that ends here, under its name."""
        name = self.splits[self._split] if self._split < len(self.splits) else str(self._split)
        self._test_rates[f"test_{name}_loss"] = self.val_loss_mean.compute()
        self.val_loss_mean.reset()
        self._test_rates |= {f"test_{name}_{rate}": value for rate, value in self.rates.compute().items()}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self.splits = tuple(getattr(data, "splits", ()))
        theirs = getattr(data, "frame_seconds", None)
        own = self.transcriber.samples_per_state / self.transcriber.log_mel.rate
        if theirs is not None and abs(theirs - own) > 1e-9:
            raise ConfigError(
                f"data.frame_seconds is {theirs:g}, but the model's stem makes a state of every {own:g} s: set "
                f"data.frame_seconds to {own:g}, so that texts longer than their sound are left out"
            )

    def _decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        if self.tokenizer is None:
            raise RuntimeError("this model has no tokenizer; fit it on a SpeechDataModule, or load such a checkpoint")
        return [self.tokenizer.decode(text) for text in texts]

    def transcribe(self, waves: Sequence[np.ndarray], *, method: Method | None = None) -> list[str]:
        """Return the texts of some waves, decoded together; a text does not depend on the other waves.

        Args:
            waves: each (n,) float32 in −1 … 1 at 16 kHz, as `read_audio` returns it.
            method: None for the model's `decoding`.

        Raises:
            RuntimeError: the model has no tokenizer (built in Python and never fitted on speech).
        """
        with self._evaluating():
            return self._decode(self._transcribe(self._encode(waves), method or self.decoding).best)

    @torch.no_grad()
    def transcribe_words(self, waves: Sequence[np.ndarray], *, method: Method | None = None) -> list[Transcript]:
        """Return the texts of some waves with the time of each word; see `transcribe` and `align`."""
        with self._evaluating():
            output = self._encode(waves)
            texts = self._transcribe(output, method or self.decoding).best
            return self._time_words(waves, output, texts)

    @torch.no_grad()
    def align(self, waves: Sequence[np.ndarray], texts: Sequence[str]) -> list[Transcript]:
        """Return when each word of known texts was said: forced alignment by the CTC head, and the pauses around.

        Args:
            waves: as for `transcribe`.
            texts: one a wave, of characters the tokenizer knows.

        Raises:
            ValueError: a text with other characters, or as many texts as waves are not there.
        """
        if len(waves) != len(texts):
            raise ValueError(f"{len(waves)} waves and {len(texts)} texts were given; give one text a wave")
        with self._evaluating():
            tokens = [self.tokenizer.encode(normalize_text(text)) for text in texts]
            return self._time_words(waves, self._encode(waves), tokens)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def _encode(self, waves: Sequence[np.ndarray]) -> EncoderOutput:
        padded, lengths = pad_waves(waves)
        return self.transcriber.encode(padded.to(self.device), lengths.to(self.device))

    def _time_words(
        self, waves: Sequence[np.ndarray], output: EncoderOutput, texts: Sequence[Sequence[int]]
    ) -> list[Transcript]:
        tokens, counts = pad_texts(texts, self.device)
        starts, ends = align_ctc(self.transcriber.ctc_log_probs(output.states), output.lengths, tokens, counts)
        hop, stride = self.transcriber.log_mel.hop, self.encoder.stride
        seconds = hop / self.transcriber.log_mel.rate
        found = []
        for wave, text, first, last in zip(waves, texts, starts.tolist(), ends.tolist(), strict=True):
            spans = word_spans(self.tokenizer, text, first, last)
            middles = [(start * stride, end * stride) for _, start, end in spans]
            borders = find_borders(torch.from_numpy(wave), middles, hop, max(1, stride // 2))
            times = [(round(start * seconds, 3), round(end * seconds, 3)) for start, end in borders]
            words = [Word(word, *time) for (word, _, _), time in zip(spans, times, strict=True)]
            found.append(Transcript(self._decode([text])[0], words))
        return found

    @torch.no_grad()
    def speech_samples(self, batch: dict[str, Any], rows: Sequence[int]) -> list[SpeechSample]:
        """Return what is heard in some rows of a batch, for pictures; see `SpeechSamples`.

        Args:
            batch: of `SpeechDataModule`.
            rows: of the batch.
        """
        index = torch.tensor(list(rows), device=self.device)
        waves, lengths = batch["waves"][index], batch["wave_lengths"][index]
        output = self.transcriber.encode(waves, lengths)
        found = self._transcribe(output, self.decoding)
        tokens, counts = pad_texts(found.best, self.device)
        inputs, _ = teacher_forcing(tokens, counts)
        context = self.transcriber.context(output)
        weights = cross_attention_weights(self.decoder, inputs, context, output.key_mask)[-1]  # (b, t + 1, s)
        rate = self.transcriber.log_mel.rate
        return [
            SpeechSample(
                batch["texts"][row],
                *(self._decode([getattr(found, head)[i]])[0] for head in HEADS),
                wave=waves[i, : lengths[i]].cpu().numpy(),
                rate=rate,
                weights=weights[i, : counts[i] + 1, : output.lengths[i]].cpu().numpy(),
            )
            for i, row in enumerate(rows)
        ]

    def _transcribe(self, output: EncoderOutput, method: Method) -> Transcripts:
        if self.ctc_weight == 0:  # an untrained head must not decide whether anything was said
            return transcribe(self.transcriber, output, method, ctc_weight=0.0, veto=False)
        return transcribe(self.transcriber, output, method)
