"""Choosing the next token from logits: temperature, top-k and nucleus (top-p) sampling.

Pure functions over (b, vocab) logits; randomness comes only from the generator that is passed in.
"""

import torch
from torch import Tensor


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError, with the number and the fix, for settings no distribution can be made from."""
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature} is negative; use 0 for greedy decoding or a positive value")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} keeps no token; use at least 1, or None to keep all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is outside (0, 1]; use for example 0.95, or None to keep all")


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set to −inf what top-k and nucleus sampling leave out.

    Args:
        logits: (b, vocab).
        top_k: keep the k largest; all where k ≥ vocab.
        top_p: keep the smallest set of largest probabilities that sums to at least p (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751); the largest is always kept.

    Returns:
        (b, vocab), with −inf where a token may not be drawn.
    """
    if top_k is not None and top_k < logits.size(-1):
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token is dropped when what stands before it already reaches p, so the first one always stays.
        drop = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: (b, vocab).
        temperature: divides the logits; 0 takes the largest.
        top_k, top_p: see `filter_logits`; applied after the temperature.
        generator: source of randomness, on the logits' device; None uses torch's global one.

    Returns:
        (b,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = filter_logits(logits.float() / temperature, top_k, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
