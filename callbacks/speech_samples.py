"""What a speech model hears during validation: reference, what each head writes, attention picture and sound."""

from __future__ import annotations

from typing import Any

import torch

from cubelet.common.checks import check_at_least
from cubelet.common.lightning_internals import logging_step

from .base import StatefulCallback
from .heat_chart import Axes, framed_map
from .reporting import experiments, idle, label, log_image, log_text, wants_pictures


class SpeechSamples(StatefulCallback):
    """Writes a few utterances of the first validation batch to loggers that take text, pictures and sound.

    The module has `speech_samples(batch, rows)`; see `cubelet.callbacks.protocols.SupportsSpeechSamples`. It runs on
    every rank (sharded models need all of them) and only rank 0 writes. The sounds are written once a run.

    Args:
        utterances: how many of the batch, spread over its rows.
        every_n_validations: write after each so many validations during a fit (sanity checks do not count).
        strict: raise instead of staying idle where the module has no `speech_samples`.

    Raises:
        ValueError: a number below 1; with `strict`, a module that has no samples.

    Example:
        >>> callback = SpeechSamples(utterances=2)
    """

    def __init__(self, utterances: int = 4, every_n_validations: int = 1, *, strict: bool = False) -> None:
        super().__init__()
        check_at_least("utterances", utterances, 1)
        check_at_least("every_n_validations", every_n_validations, 1)
        self.utterances, self.every_n_validations, self.strict = utterances, every_n_validations, strict
        self._validations = 0
        self._is_able = False
        self._has_sounds = False
        self._label = "speech"
        self._batch: dict[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        return {"utterances": self.utterances, "every_n_validations": self.every_n_validations}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label, self._has_sounds = label(trainer, self, "speech"), False
        self._is_able = callable(getattr(pl_module, "speech_samples", None))
        if not self._is_able:
            idle(self, f"{type(pl_module).__name__} has no method speech_samples(batch, rows)", self.strict)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and dataloader_idx == 0 and self._is_able:
            self._batch = batch

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        batch, self._batch = self._batch, None
        if batch is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        count = len(batch["texts"])
        rows = sorted({round(row) for row in torch.linspace(0, count - 1, min(count, self.utterances)).tolist()})
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            samples = pl_module.speech_samples(batch, rows)
        pl_module.train(training)
        lines = ["| said | written | by attention | by CTC |", "|---|---|---|---|"]
        lines += [f"| {s.reference} | {s.best} | {s.attention} | {s.ctc} |" for s in samples]
        log_text(trainer, self._label, "\n".join(lines))
        if wants_pictures(trainer):
            for number, sample in enumerate(samples):
                rows, columns = sample.weights.shape
                axes = Axes("encoder frame", "token", (0, columns), (rows, 0), "weight", sample.reference)
                log_image(trainer, f"{self._label}/attention_{number}", framed_map(sample.weights[::-1], axes, low=0.0))
        if not self._has_sounds:
            self._has_sounds = True
            for experiment in experiments(trainer, "add_audio"):
                for number, s in enumerate(samples):
                    sound = torch.from_numpy(s.wave)[None]  # (1, n)
                    experiment.add_audio(f"{self._label}/sound_{number}", sound, logging_step(trainer), s.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
