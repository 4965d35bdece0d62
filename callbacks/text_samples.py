"""Texts that the model writes during validation, so that one sees what a loss means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cubelet.common.checks import check_at_least
from cubelet.common.files import rotate_backup, write_atomic
from cubelet.common.run_folder import run_folder

from .base import StatefulCallback
from .reporting import idle, label, log_text, stops_writing


class TextSamples(StatefulCallback):
    """Continues prompts at the end of validations; texts go to loggers that take text and to `samples.txt`.

    The module has `sample_text(prompt, max_new_tokens, *, temperature, top_k, seed)`. It runs on every rank (sharded
    models need all of them) and only rank 0 writes. The global random generator is left as it was.

    Args:
        prompts: one or several texts to continue.
        every_n_validations: sample after each so many validations during a fit (sanity checks do not count).
        max_new_tokens, temperature, top_k, seed: handed to the module.
        strict: raise instead of staying idle when the module cannot write.

    Raises:
        ValueError: a bad argument; with `strict`, a module without `sample_text` or a prompt it cannot encode (without,
            the callback says so once and stays idle).

    Example:
        >>> callback = TextSamples(["ROMEO:\\n", "JULIET:\\n"], max_new_tokens=100)
    """

    def __init__(
        self,
        prompts: str | Sequence[str] = ("\n",),
        every_n_validations: int = 1,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("every_n_validations", every_n_validations, 1)
        check_at_least("max_new_tokens", max_new_tokens, 1)
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts:
            raise ValueError("prompts is empty; give at least one text to continue, such as '\\n'")
        self.every_n_validations = every_n_validations
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed
        self.strict = strict
        self._validations = 0
        self._able = False
        self._path: Path | None = None
        self._label = "samples"

    def identity(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "every_n_validations": self.every_n_validations}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "samples")
        self._able = callable(getattr(pl_module, "sample_text", None))
        if not self._able:
            idle(self, f"{type(pl_module).__name__} has no method sample_text(prompt, max_new_tokens, …)", self.strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        folder = run_folder(trainer)  # collective
        self._path = None if folder is None or not trainer.is_global_zero else folder / f"{self._label}.txt"
        if self._path is None:
            return
        try:
            if trainer.global_step == 0:
                rotate_backup(self._path)
            elif self._path.exists():
                kept = [part for step, part in _parts(self._path.read_text("utf-8")) if step <= trainer.global_step]
                write_atomic(self._path, "".join(kept))
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        assert self._path is not None
        stops_writing(self, self._path, error)
        self._path = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not self._able or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        training = pl_module.training
        pl_module.eval()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            try:
                texts = [
                    pl_module.sample_text(
                        prompt, self.max_new_tokens, temperature=self.temperature, top_k=self.top_k, seed=self.seed
                    )
                    for prompt in self.prompts
                ]
            except ValueError as error:
                # A prompt that the vocabulary cannot spell is no reason to lose a training run.
                self._able, texts = False, []
                idle(self, str(error), self.strict)
        pl_module.train(training)
        if not texts:
            return
        log_text(trainer, self._label, "\n\n---\n\n".join(f"```\n{text}\n```" for text in texts))
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"=== step {trainer.global_step}\n{text}\n\n" for text in texts))
        except OSError as error:
            self._stop(error)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


def _parts(text: str) -> list[tuple[int, str]]:
    """(step, section) of a samples file, so that what a resumed run writes again can be dropped."""
    heads = [*re.finditer(r"^=== step (\d+)$", text, flags=re.MULTILINE)]
    starts = [head.start() for head in heads] + [len(text)]
    return [(int(head[1]), text[starts[i] : starts[i + 1]]) for i, head in enumerate(heads)]
