"""α' and ν' from the spectrum of the gradient: windows, their transform, band averages and the choice.

- A window is at most 16 evenly spaced rows of 64 contiguous entries: a view of the gradient, the same on every replica
  and every step, and in order (permuting rows or columns at random whitens any spectrum, and differs per rank). Rows
  are padded to 64, so that all windows of a model go through one batched transform.
- The small state of tensors with equal settings (bands, α', ring) is packed into one tensor each, and
  `optimizer.state` holds views of the rows: an analysis is a dozen calls however many tensors there are.
- The device is read once per analysis; in a capturable step never (results are masked out between analyses).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cubelet.common.sharded_tensors import to_local, to_sharded

from .foreach import GroupedStep
from .momentum_rules import HANDLERS, MARGIN, NU_RANGE, NU_STEP, damping_nu, white_bins

# Rows and columns of the window, for each axis; "first" is SimpleFAM's, the first 1000 entries as one row.
WINDOWS = {"index": (16, 64), "time": (16, 64), "first": (1, 1000)}
CHUNK = 4  # windows per transform along time: what is in flight stays in the cache (3-4 times faster)
# Tensors that agree in these settings are analysed together.
SETTINGS = ("handler", "n_bands", "rule", "axis", "history", "start_step", "analyse_every", "beta", "min_size")

Geometry = tuple[tuple[int, int], tuple[int, int]]


def window_geometry(shape: tuple[int, ...], rows: int = 16, columns: int = 64) -> Geometry:
    """Return size and stride of the window in a contiguous tensor of that shape.

    Tensors with at least 64 entries behind the first axis give evenly spaced slices of it; others (vectors, depthwise
    kernels) are read as one sequence cut into pieces of 64.
    """
    numel = math.prod(shape)
    if numel == 0:
        return (0, columns), (columns, 1)
    row_length = numel // shape[0] if shape else 1
    if len(shape) < 2 or row_length < columns:
        row_length = min(columns, numel)
    n_rows = numel // row_length
    step = max(1, n_rows // rows)
    return (min(rows, n_rows), min(columns, row_length)), (step * row_length, 1)


def stack_windows(cuts: Sequence[tuple[Any, Geometry]], rows: int = 16, columns: int = 64) -> Tensor:
    """Return the windows cut from some gradients as one float32 tensor (T, rows, columns), filled up with zeros.

    Fastest where windows of equal size follow each other.

    Args:
        cuts: gradients, and the geometry of the window in each.
        rows: number of rows of a full window.
        columns: number of its columns.
    """
    runs = []
    for (height, width), members in groupby(cuts, key=lambda cut: cut[1][0]):
        views = [(g if g.is_contiguous() else g.contiguous()).as_strided(*geometry) for g, geometry in members]
        run = torch.stack(views).to(torch.float32)
        runs.append(run if (height, width) == (rows, columns) else F.pad(run, (0, columns - width, 0, rows - height)))
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def index_spectrum(windows: Tensor) -> Tensor:
    """Magnitudes along the weight index, summed over rows: (T, rows, columns) → (T, columns//2 + 1)."""
    real, imaginary = torch.view_as_real(torch.fft.rfft(windows)).unbind(-1)
    return torch.hypot(real, imaginary).sum(1)  # a third of the time that `abs` takes


def time_spectrum(ring: Tensor) -> Tensor:
    """Magnitudes along time, summed over the window's entries: (T, H, 16, 64) → (T, H//2 + 1).

    The ring's oldest row may be anywhere: turning a sequence changes the phases of its transform, not the magnitudes.
    A product with the few rows of the transform's matrix beats an FFT over so short an axis.
    """
    length = ring.shape[1]
    bins = length // 2 + 1
    steps = torch.arange(length, dtype=torch.float64, device="cpu")
    angle = torch.outer(steps[:bins], steps) * (2 * math.pi / length)
    transform = torch.cat([angle.cos(), angle.sin()]).to(ring)
    parts = []
    for part in ring.flatten(2).split(CHUNK):
        cos, sin = (transform @ part).unflatten(1, (2, bins)).unbind(1)
        parts.append(torch.hypot(cos, sin).sum(-1))
    return torch.cat(parts)


class SpectrumState:
    """The spectra of tensors with equal settings, on one device, with equal sharding.

    Args:
        tensors: the standing step that these tensors belong to.
        numbers: their numbers in it, those with equal windows side by side.
    """

    def __init__(self, tensors: GroupedStep, numbers: list[int]) -> None:
        locals_ = [tensors.local(i) for i in numbers]
        self.group = group = tensors.groups[locals_[0].group]
        self.members, self.all_rows = np.array(numbers), list(range(len(numbers)))
        self.process_groups = locals_[0].process_groups
        self.device = device = locals_[0].tensor().device
        self.shape = WINDOWS[group["axis"]]
        self.geometries = [window_geometry(tuple(local.tensor().shape), *self.shape) for local in locals_]
        length = group["history"] if group["axis"] == "time" else self.shape[1]
        bins, self.damps, self.listens = length // 2 + 1, group["rule"] == "damp", group["rule"] == "listen"
        self.handler = HANDLERS[group["handler"]]
        # A resonance is looked for among the bins themselves.
        by_bin = self.damps or (self.listens and group["axis"] == "time")
        pooling = torch.eye(bins, device="cpu") if by_bin else self.handler.pooling(bins, group["n_bands"])
        white = white_bins(length) @ pooling.to(torch.float32)
        self.pooling, self.white = pooling.to(device, torch.float32), white.to(device)
        self.levels = []  # of each shift: its bands, and the share of them that it asks for
        for shift in self.handler.shifts:
            part = slice(int(shift.start * white.numel()), int(shift.stop * white.numel()))
            level = shift.threshold
            if group["rule"] != "absolute":
                level = (1 + shift.threshold) * float(white[part].sum())
            self.levels.append((shift, part, level))
        self.inverse = torch.where(white > 0, 1 / white, 0).to(device)  # empty bands are never the strongest
        self.frequencies = torch.arange(bins, dtype=torch.float32, device=device) / length
        self.base = np.full(len(numbers), np.nan)
        self.packed = self._pack(tensors, numbers, white.numel())

    def _pack(self, tensors: GroupedStep, numbers: list[int], n_bands: int) -> dict[str, Tensor]:
        """Take the tensors' state into one tensor each. What is missing, or of another size, starts anew."""
        kinds = {"bands": ((n_bands,), 0.0), "alpha": ((), None)}
        if self.damps:
            kinds["nu"] = ((), 1.0)
        if self.group["axis"] == "time":  # NaN: a spectrum is unusable until every row of the ring was written
            kinds["ring"] = ((self.group["history"], *WINDOWS["time"]), math.nan)
        packed = {}
        for key, (shape, fill) in kinds.items():
            rows = []
            for i in numbers:
                held = to_local(tensors.states[i].get(key))
                if held is None or held.shape != shape:
                    value = float(tensors.base_alphas[i]) if fill is None else fill
                    held = torch.full(shape, value, dtype=torch.float32, device=self.device)
                rows.append(held.to(self.device, torch.float32))
            packed[key] = torch.stack(rows)
            for i, view in zip(numbers, packed[key].unbind(), strict=True):
                # Every rank records windows of its own shard, so that a checkpoint has to hold those of all.
                is_local = key == "ring"
                tensors.states[i][key] = to_sharded(view, tensors.local(i).parameter, 1) if is_local else view
        return packed

    def phase(self, steps: Any) -> tuple[Any, Any]:
        """Return whether tensors with these step counts (an array, a tensor or one number) are to be analysed now, and
        whether they write into their ring, since they will be within its length."""
        group = self.group
        due = (steps > group["start_step"]) & (steps % group["analyse_every"] == 0)
        if group["axis"] != "time":
            return due, steps < 0
        return due & (steps >= group["history"]), steps > group["start_step"] - group["history"]

    def record(self, rows: Sequence[int], slots: Any, windows: Tensor) -> None:
        """Write windows into the rings of these rows at slots, (len(rows),) integers of an array or a tensor."""
        ring = self.packed["ring"]
        if isinstance(slots, np.ndarray):
            if len(rows) == len(ring) and (slots == slots[0]).all():
                ring[:, int(slots[0])] = windows
                return
            slots = torch.as_tensor(slots, device=ring.device)
        ring[torch.as_tensor(rows, device=ring.device), slots] = windows

    def choose(self, rows: Sequence[int], magnitudes: Tensor, base: np.ndarray) -> None:
        """Average the new shares into the bands of these rows, and choose their α' and ν'; no host reads."""
        if not np.array_equal(base, self.base):
            self.base = base
            self.base_alpha = torch.as_tensor(base, dtype=torch.float32, device=self.device)
            self.ceiling = self.base_alpha.clamp(min=0.98)  # of the rule "ratio"
            self.shifts = [  # the first that holds wins, so it is asked last
                (shift, part, level, self.base_alpha.new_tensor([shift.shifted(alpha) for alpha in base]))
                for shift, part, level in reversed(self.levels)
            ]
        index: Any = ... if len(rows) == len(self.base) else torch.as_tensor(rows, device=self.device)
        packed, keep = self.packed, self.group["beta"] ** self.group["analyse_every"]
        held, nu, alpha, base_alpha = packed["bands"], packed.get("nu"), packed["alpha"], self.base_alpha
        if index is not ...:
            held, alpha, base_alpha = held[index], alpha[index], base_alpha[index]
            nu = None if nu is None else nu[index]
        usable, bands = average_bands(magnitudes, held, keep)
        packed["bands"][index] = bands
        if nu is not None:
            wanted = choose_nu(bands, self.white, base_alpha, nu, self.frequencies)
            packed["nu"][index] = torch.where(usable, wanted, nu)
            chosen = base_alpha
        else:
            chosen = self.choose_alpha(bands, base_alpha, index)
        packed["alpha"][index] = torch.where(usable, chosen, alpha)

    def choose_alpha(self, shares: Tensor, alpha: Tensor, index: Any) -> Tensor:
        """Return α' (T,) of the rows that `index` picks, for their band shares (T, n) and α (T,)."""
        n = shares.shape[1]
        if self.listens:
            return alpha
        if self.group["rule"] == "ratio":
            return torch.minimum(alpha + 0.05 * shares[:, n // 2 :].sum(-1), self.ceiling[index])
        absolute, chosen = self.group["rule"] == "absolute", alpha
        level, band = (
            (shares if absolute else shares * self.inverse).max(-1) if self.handler.by_strongest else (alpha,) * 2
        )
        for shift, part, asked, value in self.shifts:
            if not self.handler.by_strongest:
                holds = shares[:, part].sum(-1) > asked
            else:
                holds = band > shift.start * n if shift.start else band < shift.stop * n
                if not absolute:  # in noise the strongest band is drawn by lot: it has to stand above the white level
                    holds &= level > 1 + MARGIN
            chosen = torch.where(holds, value if index is ... else value[index], chosen)
        return chosen


Job = tuple[SpectrumState, list[int]]  # a state and the rows of it that are analysed now


def average_bands(magnitudes: Tensor, bands: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Return (T,) which magnitudes are usable, and the new running shares (T, n).

    Zero, NaN and infinite magnitudes change nothing. Bands that are all zero have not started; the first spectrum is
    then taken whole.
    """
    total = magnitudes.sum(-1, keepdim=True)
    usable = (total > 0) & (total < math.inf)
    shares = magnitudes / total  # NaN where not usable, and not used there
    averaged = torch.where(bands.sum(-1, keepdim=True) > 0, torch.lerp(shares, bands, keep), shares)
    return usable[:, 0], torch.where(usable, averaged, bands)


def choose_nu(shares: Tensor, white: Tensor, alpha: Tensor, nu: Tensor, frequencies: Tensor) -> Tensor:
    """Return ν' (T,) that damps the resonance of each tensor; 1 where there is none.

    Args:
        shares: (T, bins) shares of the spectrum along time.
        white: (bins,), those of white noise.
        alpha: (T,) momentum coefficients.
        nu: (T,) the ν in use: it changes by whole grid steps only, and a resonance ends at half the height at which it
            begins, so that noise does not move it.
        frequencies: (bins,) per step.
    """
    excess = shares[:, 1:] / white[1:] - 1  # bin 0 is the mean gradient, no oscillation
    height, peak = excess.max(-1)
    resonates = height > torch.where(nu < 1, MARGIN / 2, MARGIN)
    near = (torch.arange(excess.shape[1], device=peak.device) - peak[:, None]).abs() <= 1
    weight = torch.where(near, excess.clamp(min=0), 0)
    frequency = (weight * frequencies[1:]).sum(-1) / weight.sum(-1).clamp(min=1e-12)
    wanted = torch.where(resonates, damping_nu(alpha, frequency.clamp(min=1e-3)), 1.0)
    grid = ((wanted / NU_STEP).round() * NU_STEP).clamp(*NU_RANGE)
    return torch.where((wanted - nu).abs() >= NU_STEP, grid, nu)


class SpectralMomentum:
    """All spectra of an optimizer: what is due is analysed, and the step is told the α' and ν' it chose."""

    def __init__(self, tensors: GroupedStep) -> None:
        self.tensors = tensors
        members: dict[Any, list[int]] = {}
        numbers = [i for i in tensors.tracked if tensors.local(i).numel >= max(1, tensors.group_of(i)["min_size"])]
        # By whole shapes: shards differ in size, and every rank has to send its bands in the same order.
        sizes = {i: window_geometry(tuple(tensors.params[i].shape))[0] for i in numbers}
        for i in sorted(numbers, key=sizes.__getitem__):
            local, group = tensors.local(i), tensors.group_of(i)
            settings = tuple(group[key] for key in SETTINGS)
            members.setdefault((settings, local.tensor().device, local.process_groups), []).append(i)
        self.states = [SpectrumState(tensors, numbers) for numbers in members.values()]
        for state in self.states if not tensors.capturable else ():
            if (tensors.steps[state.members] > state.group["start_step"]).any():
                chosen = (state.packed["bands"].sum(-1) > 0).tolist()
                self._tell([(state, [row for row in state.all_rows if chosen[row]])])

    def update(self, grads: list[Tensor | None]) -> None:
        """Record the windows of these gradients, analyse what is due."""
        tensors, step = self.tensors, self.tensors.common_step
        jobs: list[Job] = []
        for state in self.states:
            if step is not None:
                due, recorded = (state.all_rows if now else [] for now in state.phase(step))
            elif tensors.capturable:
                due = [row for row, i in enumerate(state.members) if grads[i] is not None]
                recorded = due if state.group["axis"] == "time" else []
            else:
                steps, active = tensors.steps[state.members], tensors.active[state.members]
                due, recorded = (np.flatnonzero(now & active).tolist() for now in state.phase(steps))
            if recorded:
                slots = tensors.counts(state.members[recorded]) % state.group["history"]
                cuts = [(grads[state.members[row]], state.geometries[row]) for row in recorded]
                state.record(recorded, slots, stack_windows(cuts, *state.shape))
            if due:
                jobs.append((state, due))
        if not jobs:
            return
        sums = self._magnitudes(jobs, grads)
        for (state, rows), magnitudes in zip(jobs, sums, strict=True):
            state.choose(rows, magnitudes, tensors.base_alphas[state.members])
        if not tensors.capturable:
            self._tell(jobs)

    def _magnitudes(self, jobs: list[Job], grads: list[Any]) -> list[Tensor]:
        """Band magnitudes of each job, summed over shards; windows of one size go through one transform."""
        spectra: list[Any] = [None] * len(jobs)
        together: dict[Any, list[int]] = {}
        for number, (state, rows) in enumerate(jobs):
            if state.group["axis"] == "time":
                ring = state.packed["ring"]
                every = len(rows) == len(ring)
                spectra[number] = time_spectrum(ring if every else ring[torch.as_tensor(rows, device=ring.device)])
            else:
                together.setdefault((state.shape, state.device), []).append(number)
        for numbers in together.values():
            chosen = [jobs[number] for number in numbers]
            cuts = [(grads[state.members[row]], state.geometries[row]) for state, rows in chosen for row in rows]
            windows = stack_windows(cuts, *chosen[0][0].shape)
            parts = index_spectrum(windows).split([len(rows) for _, rows in chosen])
            for number, part in zip(numbers, parts, strict=True):
                spectra[number] = part
        sums = []
        for (state, rows), spectrum in zip(jobs, spectra, strict=True):
            bands = spectrum @ state.pooling
            if self.tensors.capturable:  # whether the analysis is due is known on the device only
                due, _ = state.phase(self.tensors.counts(state.members[rows]))
                bands = torch.where(due[:, None], bands, 0)
            sums.append(bands)
        return sum_over_shards(jobs, sums) if any(state.process_groups for state, _ in jobs) else sums

    def _tell(self, jobs: list[Job]) -> None:
        """Give the step the α' and ν' of these rows, in one host read."""
        keys = [(state, rows, key) for state, rows in jobs for key in ("alpha", "nu") if key in state.packed and rows]
        if not keys:
            return
        device = keys[0][0].device
        values = torch.cat([state.packed[key].to(device) for state, _, key in keys]).tolist()
        start = 0
        for state, rows, key in keys:
            part = np.array(values[start : start + len(state.members)])
            start += len(state.members)
            self.tensors.adapt(key, state.members[rows], part[rows])


def sum_over_shards(jobs: list[Job], sums: list[Tensor]) -> list[Tensor]:
    """Band magnitudes of sharded tensors summed over their shards, in one all-reduce for each set of process groups."""
    by_groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (state, _) in enumerate(jobs):
        if state.process_groups:
            by_groups.setdefault(state.process_groups, []).append(number)
    for groups, numbers in by_groups.items():
        flat = torch.cat([sums[number].flatten() for number in numbers])
        for group in groups:
            dist.all_reduce(flat, group=group)
        for number, part in zip(numbers, flat.split([sums[n].numel() for n in numbers]), strict=True):
            sums[number] = part.view_as(sums[number])
    return sums
