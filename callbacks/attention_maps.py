"""Where each head looks: the attention weights on one text, after every validation.

The latest maps lie in `attention.json` in the run's folder, for the page of the run; a picture for each attention goes
to loggers that take pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cubelet.common.checks import check_at_least
from cubelet.common.files import write_json
from cubelet.common.run_folder import run_folder

from .base import StatefulCallback
from .heat_chart import Axes, framed_map
from .reporting import idle, label, log_image, stops_writing, wants_pictures

DIGITS = 4  # of a weight in the file


class AttentionMaps(StatefulCallback):
    """Records how much each query of each head takes of each key, on the same text at every validation.

    The module has `attention_maps(tokens)`; it runs on every rank (sharded models need all of them), in evaluation, and
    draws nothing from the random generators.

    Args:
        prompt: text to look at; None for the first tokens of the first validation row, which needs no tokenizer.
        tokens: how many are looked at, at most.
        every_n_validations: look after each so many validations during a fit (sanity checks do not count).
        strict: raise instead of staying idle when the module has no attention maps.

    Raises:
        ValueError: a bad argument; with `strict`, a module without `attention_maps` or a prompt it cannot encode.

    Example:
        >>> callback = AttentionMaps("To be, or not to be", tokens=24)
    """

    def __init__(
        self, prompt: str | None = None, tokens: int = 24, every_n_validations: int = 1, *, strict: bool = False
    ) -> None:
        super().__init__()
        check_at_least("tokens", tokens, 2)
        check_at_least("every_n_validations", every_n_validations, 1)
        self.prompt, self.tokens = prompt, tokens
        self.every_n_validations = every_n_validations
        self.strict = strict
        self._validations = 0
        self._able = False
        self._row: Tensor | None = None  # (s,)
        self._path: Path | None = None
        self._label = "attention"

    def identity(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "tokens": self.tokens, "every_n_validations": self.every_n_validations}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "attention")
        self._row = None
        self._able = callable(getattr(pl_module, "attention_maps", None))
        if not self._able:
            idle(self, f"{type(pl_module).__name__} has no method attention_maps(tokens)", self.strict)
        folder = run_folder(trainer)  # collective
        self._path = None if folder is None or not trainer.is_global_zero else folder / f"{self._label}.json"

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._able or self._row is not None or batch_idx or trainer.state.fn != "fit":
            return
        if self.prompt is None:
            self._row = batch["tokens"][0, : self.tokens].clone()
            return
        try:
            ids = list(pl_module.tokenizer.encode(self.prompt))[: self.tokens]
        except (ValueError, AttributeError) as error:  # a text that the vocabulary cannot spell, or no tokenizer
            self._able = False
            idle(self, str(error), self.strict)
            return
        self._row = torch.tensor(ids, device=pl_module.device)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not self._able or self._row is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            maps = pl_module.attention_maps(self._row)
        pl_module.train(training)
        texts = token_texts(self._row.tolist(), getattr(pl_module, "tokenizer", None))
        weights = {name: np.asarray(m.detach().float().cpu().numpy(), dtype=np.float64) for name, m in maps.items()}
        if wants_pictures(trainer):
            for name, heads in weights.items():
                log_image(trainer, f"{self._label}/{name}", heads_picture(heads, texts))
        if self._path is not None:
            layers = {name: heads.round(DIGITS).tolist() for name, heads in weights.items()}
            try:
                write_json(self._path, {"step": trainer.global_step, "tokens": texts, "weights": layers})
            except OSError as error:
                stops_writing(self, self._path, error)
                self._path = None

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return what each token stands for, blanks made visible; its number where there is no tokenizer."""
    if tokenizer is None:
        return [str(i) for i in ids]
    return [tokenizer.decode([i]).replace("\n", "↵").replace(" ", "␣") for i in ids]


def map_axes(weights: np.ndarray, texts: list[str], title: str) -> Axes:
    """Return the axes of one head's weights (queries, keys), of which row 0 is drawn at the bottom: the last query."""
    queries, keys = weights.shape
    rows = texts if queries == len(texts) else [str(i) for i in range(queries)]
    columns = texts if keys == len(texts) else [str(i) for i in range(keys)]
    return Axes("key", "query", columns, rows[::-1], "weight", title)


def heads_picture(heads: np.ndarray, texts: list[str]) -> np.ndarray:
    """Return the maps of one attention, (h, queries, keys), one above the other, with axes and colour bars."""
    return np.concatenate(
        [
            framed_map(weights[::-1], map_axes(weights, texts, f"head {number}"), low=0.0, high=1.0)
            for number, weights in enumerate(heads)
        ]
    )
