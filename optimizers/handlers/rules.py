"""The four handlers. All arithmetic is on tensors (no host reads), vectorised over the tensors of a group.

The attention handler has no threshold in the notes: it looks where the strongest band is. In noise the strongest band
is drawn by lot, so under the `excess` rule it must stand at least `MARGIN` above the white level to count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .bands import equal_bands, half_bands, log_bands

RULES = ("excess", "absolute", "ratio")
MARGIN = 0.2  # the smallest threshold of the other handlers


def lift(alpha: float, boost: float, cap: float) -> float:
    """α raised by `boost` up to `cap`; an α already above the cap stays."""
    return max(alpha, min(cap, alpha + boost))


def lower(alpha: float, drop: float, floor: float) -> float:
    """α lowered by `drop` down to `floor`; an α already below the floor stays."""
    return min(alpha, max(floor, alpha - drop))


def exceeds(shares: Tensor, white: Sequence[float], part: slice, threshold: float, rule: str) -> Tensor:
    """(T,) bool: does the part of the bands lie above the threshold, absolutely or relative to white noise?"""
    level = threshold if rule == "absolute" else (1 + threshold) * sum(white[part])
    return shares[:, part].sum(-1) > level


class Handler:
    """Turns band shares (T, n), with white noise's shares (n,), into α' (T,)."""

    name: str = ""
    band_map: Callable[[int, int], Tensor] = staticmethod(equal_bands)

    def __call__(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        """
        Args:
            shares: (T, n) band shares, each row summing to one.
            white: n numbers, what white noise would have in these bands.
            alpha: the group's base momentum coefficient.
            rule: one of `RULES`.

        Returns:
            (T,) momentum coefficients.
        """
        if rule == "ratio":
            raised = alpha + 0.05 * shares[:, shares.shape[1] // 2 :].sum(-1)
            return raised.clamp(max=max(0.98, alpha))
        return self.decide(shares, white, alpha, rule)

    def decide(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        raise NotImplementedError


class DefaultHandler(Handler):
    """Upper half above 0.3: α + 0.05, at most 0.95."""

    name = "default"

    def decide(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        upper = slice(shares.shape[1] // 2, None)
        return torch.where(exceeds(shares, white, upper, 0.3, rule), lift(alpha, 0.05, 0.95), alpha)


class ConvHandler(Handler):
    """Logarithmic bands. Middle half above 0.4: α + 0.07, at most 0.97; else top quarter above 0.3: α + 0.05, 0.95."""

    name = "conv"
    band_map = staticmethod(log_bands)

    def decide(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        n = shares.shape[1]
        middle = exceeds(shares, white, slice(n // 4, 3 * n // 4), 0.4, rule)
        top = exceeds(shares, white, slice(3 * n // 4, None), 0.3, rule)
        return torch.where(middle, lift(alpha, 0.07, 0.97), torch.where(top, lift(alpha, 0.05, 0.95), alpha))


class AttentionHandler(Handler):
    """Strongest band below n/4: α − 0.05, at least 0.85; above 3n/4: α + 0.08, at most 0.98."""

    name = "attention"
    band_map = staticmethod(half_bands)

    def decide(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        n = shares.shape[1]
        low, high = lower(alpha, 0.05, 0.85), lift(alpha, 0.08, 0.98)
        if rule == "absolute":
            band = shares.argmax(-1)
            return torch.where(band < n / 4, low, torch.where(band > 3 * n / 4, high, alpha))
        level, band = (shares * self.inverse(white, shares)).max(-1)
        chosen = torch.where(band < n / 4, low, torch.where(band > 3 * n / 4, high, alpha))
        return torch.where(level > 1 + MARGIN, chosen, alpha)

    @staticmethod
    @lru_cache
    def _inverse(white: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor([1 / share if share else 0.0 for share in white], device=device)

    def inverse(self, white: Sequence[float], shares: Tensor) -> Tensor:
        """1 / white's shares (n,), on the shares' device; made once. Empty bands can never be the strongest."""
        return self._inverse(tuple(white), shares.device)


class EmbeddingHandler(Handler):
    """Top quarter above 0.2: α + 0.08, at most 0.98."""

    name = "embedding"

    def decide(self, shares: Tensor, white: Sequence[float], alpha: float, rule: str) -> Tensor:
        top = slice(3 * shares.shape[1] // 4, None)
        return torch.where(exceeds(shares, white, top, 0.2, rule), lift(alpha, 0.08, 0.98), alpha)


HANDLERS: dict[str, Handler] = {
    handler.name: handler for handler in (DefaultHandler(), ConvHandler(), AttentionHandler(), EmbeddingHandler())
}
