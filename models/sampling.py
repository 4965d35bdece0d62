"""Choosing the next token from logits: temperature, top-k, nucleus (top-p) sampling and repetition penalty.

Pure functions over (b, vocab) logits; randomness comes only from the generators that are passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def check_sampling(temperature: float, top_k: int | None, top_p: float | None, repetition_penalty: float = 1.0) -> None:
    """Raise ValueError, with the number and the fix, for settings no distribution can be made from."""
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature} is negative; use 0 for greedy decoding or a positive value")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} keeps no token; use at least 1, or None to keep all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is outside (0, 1]; use for example 0.95, or None to keep all")
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"repetition_penalty {repetition_penalty} must be positive; 1 changes nothing, 1.2 is usual")


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set to −inf what top-k and nucleus sampling leave out.

    Args:
        logits: (b, vocab).
        top_k: keep the k largest, of equal ones any; all where k ≥ vocab.
        top_p: keep the smallest set of largest probabilities that sums to at least p (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751); the largest is always kept.

    Returns:
        (b, vocab), with −inf where a token may not be drawn.

    Example:
        >>> filter_logits(torch.tensor([[1.0, 3.0, 2.0]]), top_k=2)
        tensor([[-inf, 3., 2.]])
    """
    if top_k is not None and top_k < logits.size(-1):
        best = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token is dropped when what stands before it already reaches p, so the first one always stays.
        drop = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens seen before by `penalty`, multiply negative ones.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858. logits (b, vocab), seen (b, vocab) bool.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: (b, vocab).
        temperature: divides the logits; 0 takes the largest.
        top_k, top_p: see `filter_logits`; applied after the temperature.
        generator: source of randomness, on the logits' device; one a row, each row then draws as it would alone; None
            uses torch's global one.

    Returns:
        (b,) int64.

    Raises:
        ValueError: NaN among the logits.

    Example:
        >>> sample(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0).tolist()
        [1]
    """
    if logits.isnan().any():
        raise ValueError("the logits are NaN: the weights are damaged (a training that diverged?), or the input is NaN")
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    # The largest is 0 before it is divided, so that no temperature is too small to divide by.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    weights = filter_logits(logits, top_k, top_p).softmax(-1)
    if isinstance(generator, Sequence):
        rows = zip(weights, generator, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=own) for row, own in rows])
    return torch.multinomial(weights, 1, generator=generator).squeeze(-1)
