"""Loss and exact answers at several multiples of the training context: how far a model carries what it learned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100  # targets that nothing predicts: torch's own `ignore_index`


@dataclass(frozen=True)
class LengthPoint:
    """What a model does at one length.

    Attributes:
        loss: nats a token; None where the model refuses the length, or there is no text that long.
        exact: share of the rows that are right to the last token; None where the data has no right answers. Judged by
            the likeliest token given the true ones before it, which for a whole row is the same as writing it greedily.
    """

    loss: float | None = None
    exact: float | None = None


@torch.no_grad()
def length_curve(model: Any, data: Any, factors: Iterable[int], rows: int) -> dict[int, LengthPoint]:
    """{context in tokens: what the model does there}.

    Args:
        model: has `loss(batch)`, and gives logits (b, s, vocabulary) of tokens (b, s); is put into evaluation and left
            as it was.
        data: has `length_batches(length, rows)` and, where rows have one right answer, `has_answers`; or is a
            `TextDataModule`. Other data have only the length that they have: {}.
        factors: multiples of `data.context_length`.
        rows: about how many sequences to average over.
    """
    factors = sorted(factors)
    if not hasattr(data, "length_batches") and not hasattr(data.val_dataloader(), "windows"):
        return {}
    was_training = model.training
    model.eval()
    curve = {}
    for factor in factors:
        length = factor * data.context_length
        try:
            if hasattr(data, "length_batches"):
                batches = data.length_batches(length, rows)
            else:
                batches = text_windows(data, length, factors[-1] * data.context_length, rows)
            batches = ({k: v.to(model.device) for k, v in batch.items()} for batch in batches)
            curve[length] = _measure(model, batches, getattr(data, "has_answers", False))
        except ValueError:
            curve[length] = LengthPoint()
    model.train(was_training)
    return curve


def _measure(model: Any, batches: Iterable[dict[str, Tensor]], has_answers: bool) -> LengthPoint:
    total = tokens = exact = rows = 0.0
    for batch in batches:
        is_target = batch["targets"] != IGNORE
        count = int(is_target.sum())
        if has_answers:
            logits = model(batch["tokens"])  # (b, s, vocabulary)
            loss = cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
            is_right = (logits.argmax(-1) == batch["targets"]) | ~is_target
            exact, rows = exact + int(is_right.all(1).sum()), rows + len(is_right)
        else:
            loss = model.loss(batch)[0]
        total, tokens = total + count * float(loss), tokens + count
    return LengthPoint(total / tokens if tokens else None, exact / rows if rows else None)


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
