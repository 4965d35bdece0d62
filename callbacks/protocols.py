"""Protocols: what a module or an optimizer may have for these callbacks to act on it.

The callbacks import no model. They look for small sets of attributes and methods, so that they attach to anybody's
LightningModule; a component of your own that has one of these is found like ours.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SupportsSetBase(Protocol):
    """A rotary whose base may move: `base` is a number or 0-dim tensor, `set_base` writes it in place."""

    base: Any

    def set_base(self, base: float) -> None: ...


@runtime_checkable
class SupportsSetWindow(Protocol):
    """An attention whose local window (tokens, an int) may move."""

    window: int

    def set_window(self, window: int) -> None: ...


@runtime_checkable
class SupportsSetSpan(Protocol):
    """An attention whose span scale (0 … 1, a number or tensor) may move."""

    span: Any

    def set_span(self, span: Any) -> None: ...


@runtime_checkable
class SupportsRefine(Protocol):
    """An attention that chooses its own span by trial and reward: `refine` takes the loss, returns the next span."""

    def refine(self, loss: float) -> float: ...


@runtime_checkable
class HasRotationMatrix(Protocol):
    """A rotary with a position-independent factor R of shape (c, c), or None where there is none."""

    base: Any

    def rotation_matrix(self) -> Tensor | None: ...


@runtime_checkable
class SupportsSampleText(Protocol):
    """A module that continues a text."""

    def sample_text(
        self, prompt: str, max_new_tokens: int, *, temperature: float, top_k: int | None, seed: int
    ) -> str: ...


@runtime_checkable
class SupportsAttentionMaps(Protocol):
    """A module that says how much each query of each head takes of each key, for a row of tokens (s,)."""

    def attention_maps(self, tokens: Tensor) -> dict[str, Tensor]: ...


class SpeechSample(Protocol):
    """An utterance as a module hears it.

    Attributes:
        reference: what was said. best, attention, ctc: what was written, by all and by each head.
        wave: (n,) float32 sound. rate: its samples a second.
        weights: (t, s) float, where the decoder looks for each token.
    """

    reference: str
    best: str
    attention: str
    ctc: str
    wave: Any
    rate: int
    weights: Any


@runtime_checkable
class SupportsSpeechSamples(Protocol):
    """A module that shows what it hears in some rows of a batch."""

    def speech_samples(self, batch: dict[str, Any], rows: list[int]) -> list[SpeechSample]: ...


@runtime_checkable
class HasSpectrumSummary(Protocol):
    """An optimizer that lists, for each analysed tensor, its name, handler, alpha, base_alpha, bands and step."""

    def spectrum_summary(self) -> list[dict[str, Any]]: ...
