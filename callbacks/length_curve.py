"""Loss at several multiples of the training context: how far a model carries what it learned of positions."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # targets that nothing predicts: torch's own `ignore_index`


@torch.no_grad()
def length_curve(model: Any, data: Any, factors: Iterable[int], rows: int) -> dict[int, float | None]:
    """Loss in nats a token at several multiples of the training context; None where the model refuses a length.

    Args:
        model: has `loss(batch)`; is put into evaluation and left as it was.
        data: has `length_batches(length, rows)`, or is a `TextDataModule`.
        factors: multiples of `data.context_length`.
        rows: about how many sequences to average over.
    """
    factors = sorted(factors)
    was_training = model.training
    model.eval()
    curve: dict[int, float | None] = {}
    for factor in factors:
        length = factor * data.context_length
        try:
            if hasattr(data, "length_batches"):
                batches = data.length_batches(length, rows)
            else:
                batches = text_windows(data, length, factors[-1] * data.context_length, rows)
            total = count = 0.0
            for batch in batches:
                batch = {k: v.to(model.device) for k, v in batch.items()}
                n = int((batch["targets"] != IGNORE).sum())
                total, count = total + n * float(model.loss(batch)[0]), count + n
            curve[length] = total / count if count else None
        except ValueError:
            curve[length] = None
    model.train(was_training)
    return curve


def text_windows(data: Any, length: int, longest: int, rows: int) -> Iterator[dict[str, Tensor]]:
    """Windows of the held-out text whose last `context_length` tokens are the same ones for every `length`.

    Args:
        data: a `TextDataModule`.
        length: tokens of a window.
        longest: of the longest windows that will be asked for; no window ends before that many tokens.
        rows: windows, spread evenly over the text; fewer where the text is short.
    """
    tokens = data.val_dataloader().windows.tokens
    chunk = data.context_length
    last = (len(tokens) - 1) // chunk
    first = -(-longest // chunk)
    if last < first:
        return
    ends = np.unique(np.linspace(first, last, min(rows, last - first + 1)).round().astype(int)) * chunk
    size = max(1, data.val_batch_size * chunk // length)
    for start in range(0, len(ends), size):
        places = ends[start : start + size, None] + np.arange(-length, 1)
        text = torch.from_numpy(tokens[places].astype(np.int64))
        targets = text[:, 1:].clone()
        targets[:, :-chunk] = IGNORE
        yield {"tokens": text[:, :-1].contiguous(), "targets": targets}
