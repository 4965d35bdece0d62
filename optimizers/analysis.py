"""The spectra of one parameter group: band shares, their running average, and α', for all its tensors at once.

The small state of a group's tensors (bands, α', ring) is packed into one tensor each; `optimizer.state` holds views of
the rows. So an analysis is a dozen calls for a whole group however many tensors it has, and checkpoints still see the
usual per-parameter state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .entries import Entry
from .handlers import HANDLERS, pool, white_bins
from .spectra import WINDOWS, window

SETTINGS = ("handler", "n_bands", "alpha", "rule", "axis", "history", "start_step", "analyse_every", "beta", "min_size")


def analysis_settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group's settings the analysis depends on; groups that agree in it are analysed together."""
    return tuple(group.get(key) for key in SETTINGS)


class Pack:
    """Analysed tensors with equal settings, on one device, with equal sharding.

    Args:
        group: a param group with these settings.
        members: the tensors' numbers in the optimizer's list of entries, those with equal windows side by side.
        entries: their entries, in the same order.
        states: their `optimizer.state` dicts; "bands", "alpha" (and "ring") become views of the pack.
    """

    def __init__(self, group: dict[str, Any], members: list[int], entries: list[Entry], states: list[Any]) -> None:
        self.group, self.entries = group, entries
        self.numbers, self.members, self.all_rows = members, np.array(members), list(range(len(members)))
        self.process_groups = entries[0].process_groups
        self.handler = HANDLERS[group["handler"]]
        self.shape = WINDOWS[group["axis"]]
        length = group["history"] if group["axis"] == "time" else self.shape[1]
        device = states[0]["bands"].device
        bins = length // 2 + 1
        self.pooling = pool(torch.eye(bins), self.handler.band_map(bins, group["n_bands"]), group["n_bands"]).to(device)
        self.white = tuple((white_bins(length) @ self.pooling.cpu()).tolist())
        self.packed = {
            key: torch.stack([state[key] for state in states]) for key in ("bands", "alpha", "ring") if key in states[0]
        }
        for row, state in enumerate(states):
            state.update({key: packed[row] for key, packed in self.packed.items()})

    @staticmethod
    def state(group: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        """The small state of one analysed tensor."""
        state = {
            "bands": torch.zeros(group["n_bands"], device=device),
            "alpha": torch.tensor(float(group["alpha"]), dtype=torch.float32, device=device),
        }
        if group["axis"] == "time":
            state["ring"] = torch.zeros(group["history"], *WINDOWS["time"], device=device)
        return state

    def due(self, steps: Any) -> Any:
        """Which of the tensors, with these step counts, are to be analysed now; an array or one number."""
        group = self.group
        due = (steps > group["start_step"]) & (steps % group["analyse_every"] == 0)
        return due & (steps >= group["history"]) if group["axis"] == "time" else due

    def records(self, steps: Any) -> Any:
        """Which of the tensors write into their ring now: those that will be analysed within the ring's length."""
        return steps > self.group["start_step"] - self.group["history"] if self.group["axis"] == "time" else steps < 0

    def windows(self, rows: Sequence[int], grads: Sequence[Tensor]) -> list[Tensor]:
        """The windows of these tensors' local gradients."""
        return [window(grad, self.entries[row].geometry) for row, grad in zip(rows, grads, strict=True)]

    def record(self, rows: Sequence[int], steps: np.ndarray, windows: Tensor) -> None:
        """Writes windows into the rings, at the slot that each tensor's step count gives."""
        slots = steps.astype(np.int64) % self.group["history"]
        ring = self.packed["ring"]
        if len(rows) == len(self.entries) and (slots == slots[0]).all():
            ring[:, int(slots[0])] = windows
        else:
            ring[torch.as_tensor(rows, device=ring.device), torch.as_tensor(slots, device=ring.device)] = windows

    def record_rows(self, rows: Sequence[int], slots: Tensor, windows: Tensor) -> None:
        """Writes windows into the rings at slots (len(rows),) that only the device knows."""
        self.packed["ring"][torch.as_tensor(rows, device=slots.device), slots] = windows

    def rings(self, rows: Sequence[int]) -> Tensor:
        """The rings of these tensors, (len(rows), H, 16, 64)."""
        ring = self.packed["ring"]
        return ring if len(rows) == len(self.entries) else ring[torch.as_tensor(rows, device=ring.device)]

    def pooled(self, spectra: Tensor) -> Tensor:
        """Unnormalised band magnitudes (T, n_bands) of magnitudes per bin (T, F)."""
        return spectra @ self.pooling

    def update(self, rows: Sequence[int], magnitudes: Tensor) -> Tensor:
        """Averages the new shares into the bands and sets α'. Returns the rows' α' (len(rows),), on the device.

        Zero, NaN and infinite magnitudes change nothing.
        """
        bands, alpha = self.packed["bands"], self.packed["alpha"]
        every = len(rows) == len(self.entries)
        index = slice(None) if every else torch.as_tensor(rows, device=bands.device)
        bands[index], alpha[index] = chosen = decide(
            magnitudes, bands[index], alpha[index], self.white, self.handler, self.group
        )
        return chosen[1]


def decide(
    magnitudes: Tensor,
    bands: Tensor,
    alpha: Tensor,
    white: Sequence[float],
    handler: Any,
    group: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """New running bands (T, n) and α' (T,) from the magnitudes (T, n) of one analysis; no host reads.

    Bands that are all zero have not started; the first spectrum is then taken whole.
    """
    total = magnitudes.sum(-1, keepdim=True)
    usable = (total > 0) & (total < math.inf)
    shares = magnitudes / total  # NaN where not usable, and not used there
    keep = group["beta"] ** group["analyse_every"]
    averaged = torch.where(bands.sum(-1, keepdim=True) > 0, torch.lerp(shares, bands, keep), shares)
    new_bands = torch.where(usable, averaged, bands)
    new_alpha = handler(new_bands, white, float(group["alpha"]), group["rule"])
    return new_bands, torch.where(usable[:, 0], new_alpha, alpha)


def reduce_over_shards(jobs: list[tuple[Pack, Tensor]]) -> list[Tensor]:
    """Sums the band magnitudes of sharded tensors over their shards, in one all-reduce for each process group."""
    reduced = [magnitudes for _, magnitudes in jobs]
    by_groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (pack, _) in enumerate(jobs):
        if pack.process_groups:
            by_groups.setdefault(pack.process_groups, []).append(number)
    for groups, numbers in by_groups.items():
        flat = torch.cat([reduced[number].flatten() for number in numbers])
        for group in groups:
            dist.all_reduce(flat, group=group)
        for number, part in zip(numbers, flat.split([reduced[n].numel() for n in numbers]), strict=True):
            reduced[number] = part.view_as(reduced[number])
    return reduced
