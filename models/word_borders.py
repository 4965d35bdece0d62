"""Where words begin and end: CTC says about when, the pauses around them say exactly.

CTC writes a character in one state somewhere in its sound, or a few states away: its encoder hears the whole row. What
is sure is that a word ends and the next begins between the last character of the one and the first of the other. There
the quiet runs of the wave are looked at, in hops of 10 ms:

- *Quiet* is 40 dB below the row's loudest hop or, in noise, the lowest quarter between the row's floor and that.
- A quiet run of 120 ms is a pause; a shorter one may be the closure of a plosive. The word before ends where the first
  pause begins, the word behind begins where the last one ends: a cough between two pauses belongs to neither.
- Without a pause, both lie at the ends of the longest quiet run, and without any, at the quietest hop.

Shapes: n samples, f hops, w words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DEPTH, RANGE = 40.0, 0.25  # dB below the loudest hop; share of the range above the floor
SHORTEST, PAUSE, REACH = 4, 12, 60  # hops: a quiet run, a pause, and how far around the text

Span = tuple[int, int]


def measure_loudness(wave: Tensor, hop: int) -> Tensor:
    """Return (f,) the power of each hop in dB of a wave (n,); a last hop that is not whole is left out."""
    whole = max(1, len(wave) // hop)
    padded = torch.nn.functional.pad(wave.float(), (0, max(0, hop - len(wave))))[: whole * hop]
    return 10 * (padded.unflatten(0, (whole, hop)).square().mean(-1) + 1e-12).log10()  # (f,)


def quiet_runs(loudness: Tensor) -> list[Span]:
    """Return (first, behind the last) hop of each quiet run of at least `SHORTEST` hops, of loudness (f,)."""
    top, floor = float(loudness.max()), float(loudness.quantile(0.05))
    quiet = loudness < max(top - DEPTH, floor + RANGE * (top - floor))  # (f,)
    edges = torch.nn.functional.pad(quiet.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= SHORTEST]


def find_borders(wave: Tensor, spans: Sequence[Span], hop: int = 160, half: int = 2) -> list[Span]:
    """Return where words begin and end, in hops, from where their characters lie.

    Args:
        wave: (n,) one row, without padding.
        spans: w pairs of hops, the middles of the states of a word's first and of its last character; in order.
        hop: samples.
        half: hops that are half a state, kept around a span that no quiet run borders.

    Returns:
        w pairs (first hop, hop behind the last), in order and nowhere overlapping.

    Example:
        >>> tone = torch.ones(3_200)
        >>> wave = torch.cat([torch.zeros(3_200), tone, torch.zeros(3_200), tone])
        >>> find_borders(wave, [(26, 30), (70, 74)])
        [(20, 40), (60, 76)]
    """
    if not spans:
        return []
    loudness = measure_loudness(wave, hop)
    runs, hops = quiet_runs(loudness), len(loudness)
    firsts, lasts = [first for first, _ in spans], [last for _, last in spans]
    starts, ends = [max(0, first - half) for first in firsts], [min(hops, last + half) for last in lasts]
    lefts = [max(0, firsts[0] - REACH), *lasts]
    rights = [*firsts, min(hops - 1, lasts[-1] + REACH)]
    for place, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        between = [run for run in runs if run[0] <= right and run[1] > left]
        if between:
            pauses = [run for run in between if run[1] - run[0] >= PAUSE]
            pauses = pauses or [max(between, key=lambda run: run[1] - run[0])]
        elif 0 < place < len(spans):
            quietest = left + 1 + int(loudness[left + 1 : right + 1].argmin())
            pauses = [(quietest, quietest)]
        else:
            continue
        if place > 0:
            ends[place - 1] = pauses[0][0]
        if place < len(spans):
            starts[place] = pauses[-1][1]
    for place, (first, last) in enumerate(spans):
        if starts[place] >= ends[place]:  # all its characters lie in one pause
            before = ends[place - 1] if place else 0
            behind = starts[place + 1] if place + 1 < len(spans) else hops
            starts[place] = min(first, max(before, first - half))
            ends[place] = max(last + 1, min(behind, last + half))
    return list(zip(starts, ends, strict=True))
