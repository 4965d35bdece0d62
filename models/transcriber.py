"""The transcriber: waves in, text tokens out; an encoder with a CTC head, and a decoder that attends to its states.

Both heads are trained together (Watanabe et al. 2017, https://arxiv.org/abs/1609.06773): CTC forces the encoder's
states into the order of the text, without which attention does not find its way in a small training run. Each head
alone gives a text, and `models/transcription.py` lets them decide together.

Tokens: 0 is CTC's blank and the padding of texts, 1 begins a text (BOS), 2 ends it (EOS).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import rms_norm
from .decoder import Decoder
from .encoder import Encoder, EncoderOutput, length_mask
from .log_mel import LogMel

BLANK, BOS, EOS = 0, 1, 2
IGNORE = -100


class Transcriber(nn.Module):
    """Encoder, CTC head and decoder.

    Args:
        encoder: of log-mel frames.
        decoder: built with `cross_attention=True`, of the encoder's width.
        log_mel: waves → frames; None for the default with as many bands as the encoder takes.
        augment: masks frames in training; None for none.

    Raises:
        ValueError: parts that do not fit each other.

    Example:
        >>> import torch
        >>> encoder = Encoder(80, dims=32, layers=1, heads=2)
        >>> decoder = Decoder(10, 32, layers=1, heads=2, cross_attention=True)
        >>> transcriber = Transcriber(encoder, decoder)
        >>> output = transcriber.encode(torch.zeros(1, 16_000), torch.tensor([16_000]))
        >>> transcriber.ctc_log_probs(output.states).shape
        torch.Size([1, 25, 10])
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, *, log_mel: LogMel | None = None, augment: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not decoder.cross_attention:
            raise ValueError("the decoder of a Transcriber attends to the encoder: build it with cross_attention=True")
        if decoder.dims != encoder.dims:
            raise ValueError(f"the decoder has dims {decoder.dims} and the encoder {encoder.dims}; they must be equal")
        self.log_mel = LogMel(encoder.features) if log_mel is None else log_mel
        if self.log_mel.mels != encoder.features:
            raise ValueError(f"log_mel gives {self.log_mel.mels} bands, the encoder takes {encoder.features} features")
        self.augment, self.encoder, self.decoder = augment, encoder, decoder
        self.ctc_head = nn.Linear(encoder.dims, decoder.vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the CTC head; at zero it would learn "all blank" before the encoder has a gradient."""
        nn.init.normal_(self.ctc_head.weight, std=self.encoder.dims**-0.5)
        nn.init.zeros_(self.ctc_head.bias)

    @property
    def samples_per_state(self) -> int:
        """Samples of sound to one state of the encoder."""
        return self.log_mel.hop * self.encoder.stride

    def encode(self, waves: Tensor, lengths: Tensor) -> EncoderOutput:
        """Return the states of waves (b, n), of which lengths (b,) samples in each row are real."""
        frames, counts = self.log_mel(waves, lengths)  # (b, f, m), (b,)
        if self.augment is not None:
            frames = self.augment(frames, counts)
        return self.encoder(frames, counts)

    def context(self, output: EncoderOutput) -> Tensor:
        """Return what the decoder attends to: (b, s, d), the states at unit RMS, padded ones zero."""
        return rms_norm(output.states).masked_fill(~output.key_mask[..., None], 0.0)

    def ctc_log_probs(self, states: Tensor) -> Tensor:
        """Return log-probabilities of tokens, (b, s, vocab) float32, of states (b, s, d)."""
        return self.ctc_head(states).float().log_softmax(-1)

    def ctc_loss(self, output: EncoderOutput, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Return the mean over rows of CTC's loss (nats a row), 0-dim; rows that are too short for their text give 0.

        Args:
            output: of `encode`.
            tokens: (b, t) texts, padded with 0.
            token_lengths: (b,).
        """
        log_probs = self.ctc_log_probs(output.states).transpose(0, 1)  # (s, b, vocab)
        losses = F.ctc_loss(
            log_probs, tokens, output.lengths, token_lengths, blank=BLANK, reduction="none", zero_infinity=True
        )  # (b,)
        return losses.mean()

    def attention_loss(self, output: EncoderOutput, tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over rows of the decoder's cross-entropy (nats a row, EOS included), and its blocks' cost."""
        inputs, targets = teacher_forcing(tokens, token_lengths)  # (b, t + 1) each
        x, cost = self.decoder.features(
            inputs, self.context(output), key_mask=targets != IGNORE, context_mask=output.key_mask
        )  # (b, t + 1, d)
        logits = self.decoder.unembed(x)  # (b, t + 1, vocab)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return loss / len(tokens), cost if cost is not None else loss.new_zeros(())

    def penalty(self) -> Tensor:
        """Sum of the penalties that depend on parameters only: 0-dim."""
        return self.encoder.penalty() + self.decoder.penalty()


def teacher_forcing(tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the decoder reads, BOS and the text, and what it is to say, the text and EOS.

    Args:
        tokens: (b, t), padded with 0. token_lengths: (b,).

    Returns:
        (b, t + 1) inputs padded with 0, (b, t + 1) targets padded with −100.
    """
    inputs = F.pad(tokens, (1, 0), value=BOS)  # (b, t + 1)
    ends = F.pad(tokens, (0, 1)).scatter(1, token_lengths[:, None], EOS)  # (b, t + 1)
    outside = ~length_mask(token_lengths + 1, inputs.shape[1])
    return inputs.masked_fill(outside, BLANK), ends.masked_fill(outside, IGNORE)
