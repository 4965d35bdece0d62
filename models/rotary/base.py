"""What every rotary shares: the base, the tables, the two entrances, and folding.

Notation: b batch, h heads, s sequence, c = dims / heads; row vectors, so y = x·M. A rotary computes, per head,
y = RoPE_p(x · R): R (c, c) does not depend on the position, RoPE turns the interleaved pairs (2m, 2m+1) by p·θ_m with
θ_m = base^(−2m/c) (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Choices, each for a measured reason:

- Eager code multiplies complex numbers: reading pairs once and writing them once costs about what a copy costs, while
  the usual "rotate half" forms six temporaries. Inductor has no code for complex numbers; what compiled graphs do
  instead is in `compiled.py`.
- Angles are formed in float64 and stored as float32 (complex64): position·frequency in float32 is off by 4e-4 radians
  at position 4,096, and in bfloat16 two out of three positions do not exist.
- Tables are no buffers. They follow from `base`, so they do not belong in a state_dict, DDP should not broadcast them
  and `.bfloat16()` must not touch them. In eager code they are kept and checked against `base` at every use;
  compiled code asks for them inside the graph, so that it can neither use a stale one nor recompile for a new one.
- The base itself is stored, not its logarithm: 10000 and 500000 are exact in float32, their logarithms are not.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .compiled import tabulate, turn_pairs_compiled, turn_steadily
from .fold import fold_
from .scaling import Scaling
from .turning import TableCache, check_positions, mix, turn_pairs
from .turning import turn_pairs_real as turn_pairs_real


def check_heads(dims: int, heads: int, even: bool = True) -> int:
    """head_dim = dims / heads; ValueError with the numbers where it is not a whole (and, if asked, even) number."""
    if heads < 1 or dims < 1 or dims % heads:
        raise ValueError(f"dims {dims} is not divisible by heads {heads}; choose dims as a multiple of heads")
    head_dim = dims // heads
    if even and head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd; rotary needs an even head_dim (dims {dims} / heads {heads})")
    return head_dim


def check_base(base: float) -> float:
    """The base as a float; ValueError unless it is finite and above 1."""
    value = float(base)
    if not (math.isfinite(value) and value > 1):
        raise ValueError(f"base {value:g} must be a finite number above 1 (10000 is usual)")
    return value


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on the one backend that has no float64 (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


class Rotary(nn.Module):
    """The interface, and all of what does not depend on the variant. Use a subclass; `RoPE` is the plain one.

    Args:
        dims: model width d, heads·c.
        heads: number of heads the width is divided into.
        base: B of θ_m = B^(−2m/c), above 1. Held as a 0-dim float32 buffer; change it with `set_base`.
        scaling: context extension, a `Scaling` (see `scaling.py`), or None.

    Raises:
        ValueError: dims not divisible by heads, odd head_dim, base not above 1.

    Attributes:
        is_relative: whether scores q·k depend on p_q − p_k alone when both were rotated.
        position_axes: numbers that make up one position; above 1, positions are (s, n) or (b, s, n).
        base_version: counts changes of the base; a key-value cache compares it to refuse keys of another base.
    """

    is_relative: bool = True
    position_axes: int = 1
    needs_even: bool = True
    _first: int = 0  # the first feature of the table's pairs, where they are not all
    base: Tensor
    merged: Tensor

    def __init__(self, dims: int, heads: int, *, base: float = 10_000.0, scaling: Scaling | None = None) -> None:
        super().__init__()
        self.head_dim = check_heads(dims, heads, even=self.needs_even)
        self.dims, self.heads, self.scaling = dims, heads, scaling
        self.initial_base = check_base(base)
        self.register_buffer("base", torch.tensor(self.initial_base, dtype=torch.float32))
        # In the state_dict, so that a checkpoint of a merged model is not rotated twice; read when loading only.
        self.register_buffer("merged", torch.tensor(False))
        self.base_version = 0
        self._merged = False
        self._tables = TableCache()
        self.register_load_state_dict_post_hook(_after_load)

    # -- the base --

    @torch.no_grad()
    def set_base(self, base: float | Tensor) -> None:
        """Write a new base in place (optimizers, DDP and compiled graphs keep their tensor) and count the change."""
        if isinstance(base, Tensor) and base.device == self.base.device and base.device.type != "cpu":
            self.base.copy_(base.detach())  # no read-back from the accelerator; the caller vouches for base > 1
        else:
            self.base.fill_(check_base(float(base)))
        self.base_version += 1

    def reset_parameters(self) -> None:
        """Back to the constructor's values, for a module that was built on the meta device and then `to_empty`."""
        self.set_base(self.initial_base)
        self.merged.fill_(False)
        self._merged = False

    def frequencies(self) -> Tensor:
        """θ_m in radians per position, (c/2,) float64, from the current base."""
        base = self.base.to(wide_dtype(self.base.device))
        return (self.scaling or Scaling()).frequencies(base, self.head_dim)

    def gain(self) -> float:
        """A constant factor of the rotated vector; 1 but for YaRN's attention factor and `output_scale`."""
        return 1.0 if self.scaling is None else self.scaling.gain

    # -- the position-dependent part --

    def _table_varies(self) -> bool:
        """Whether the table must be made anew at every call (because something in it learns)."""
        return False

    def _check_positions(self, positions: Tensor, batch: int, length: int) -> None:
        check_positions(positions, batch, length)

    def _default_positions(self, length: int, device: torch.device) -> Tensor:
        return torch.arange(length, device=device)

    def _polar(self, positions: Tensor) -> tuple[Tensor | float, Tensor]:
        """Radius and angle of every pair, float64: positions (...,) → angles (..., n)."""
        return self.gain(), positions.to(wide_dtype(positions.device)).unsqueeze(-1) * self.frequencies()

    def _cis(self, positions: Tensor, dtype: torch.dtype, inverse: bool = False) -> Tensor:
        radius, angles = self._polar(positions)
        radius = torch.ones_like(angles) * (1 / radius if inverse else radius)
        return torch.polar(radius, angles).to(dtype)

    def _table(self, x: Tensor, length: int, positions: Tensor | None, inverse: bool) -> Tensor:
        """Complex table (s, c/2) or (b, s, c/2) for x, kept where nothing in it learns."""
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        if self._table_varies():
            steps = self._default_positions(length, x.device) if positions is None else positions
            return self._cis(steps, dtype, inverse)
        base = self.base
        if base.device.type == "cpu":
            mark: Any = base.item()  # its value: DDP writes buffers, unchanged, before every forward
        else:  # reading the value would wait for the device
            mark = (self.base_version, 0 if base.is_inference() else base._version)
        cache, last = self._tables, self._tables.last
        if positions is None and last is not None and last[:4] == (length, mark, dtype, x.device):  # the usual call
            return last[4]
        key = (dtype, x.device, mark)
        if positions is None:
            rows = cache.rows
            if rows is None or cache.key != key or rows.shape[0] < length:
                steps = self._default_positions(max(64, 1 << (length - 1).bit_length()), x.device)
                cache.key, cache.rows = key, self._lasting(steps, dtype)
                rows = cache.rows
            with torch.inference_mode(False):
                cache.last = (length, mark, dtype, x.device, rows[:length])
            return cache.last[-1]
        if positions.is_inference():  # it counts no versions, so a change in place would go unnoticed
            return self._lasting(positions, dtype)
        last, version = cache.by_positions, positions._version
        if last is None or last[0] != key or last[1] is not positions or last[2] != version:
            last = cache.by_positions = (key, positions, version, self._lasting(positions, dtype))
        return last[3]

    def _lasting(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        # A table that was made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            return self._cis(positions, dtype)

    def turn(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The position-dependent part alone, for projections into which R was folded.

        Args:
            x: (b, h, s, c); h may be any number of heads, and the memory may be that of (b, s, h, c).
            positions: integers (s,) or (b, s); None means 0…s−1.

        Returns: x's shape, dtype and memory order.
        """
        return self._turn(x, positions, 1)

    def turn_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """`turn` for keys, which differs where queries and keys are scaled against each other (xPos)."""
        return self.turn(x, positions)

    def _turn(self, x: Tensor, positions: Tensor | None, head_axis: int, R: Tensor | None = None) -> Tensor:
        """turn for x (b, h, s, c), head_axis 1, or (b, s, h, c), head_axis 2; R as used before, where it is at hand."""
        self._check(x, positions, head_axis)
        return self._turn_pairs(x, positions, head_axis)

    def _check(self, x: Tensor, positions: Tensor | None, head_axis: int) -> None:
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; want 4 dimensions, the last of head_dim {self.head_dim}")
        if positions is not None:
            self._check_positions(positions, x.shape[0], x.shape[3 - head_axis])

    def _turn_pairs(self, x: Tensor, positions: Tensor | None, head_axis: int, inverse: bool = False) -> Tensor:
        """Turn by the table; `inverse` takes its radii to −1 (where they are not constant: tables that vary)."""
        length = x.shape[3 - head_axis]
        if torch.compiler.is_compiling():
            if positions is None and x.device.type == "cpu" and not self._table_varies() and not self._first:
                radius, step = self._polar(self._default_positions(2, x.device))
                if 2 * step.shape[-1] == x.shape[-1] and isinstance(radius, float):
                    return turn_steadily(x, step[1], radius, head_axis)  # angles are proportional to the position
            return turn_pairs_compiled(x, self._compiled_table(x, length, positions, head_axis, inverse), self._first)
        return turn_pairs(x, self._spread(self._table(x, length, positions, inverse), head_axis), self._first)

    def _compiled_table(
        self, x: Tensor, length: int, positions: Tensor | None, head_axis: int, inverse: bool
    ) -> Tensor:
        """(…, n, 2) cosines and sines, the head axis inserted."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        radius, angles = self._polar(self._default_positions(length, x.device) if positions is None else positions)
        radius = 1 / radius if inverse else radius
        table = tabulate(torch.stack((angles.cos(), angles.sin()), dim=-1).mul(_column(radius)).to(dtype))
        return self._spread(table.flatten(-2), head_axis).unflatten(-1, (-1, 2))

    @staticmethod
    def _spread(table: Tensor, head_axis: int) -> Tensor:
        """Insert the head axis: (s, n) → (s, n) or (s, 1, n); (b, s, n) → (b, 1, s, n) or (b, s, 1, n)."""
        if head_axis == 1:
            return table if table.ndim == 2 else table.unsqueeze(1)
        return table.unsqueeze(-2)

    # -- the position-independent part --

    def mixing(self) -> Tensor | None:
        """R (c, c) in float32 (float64 after `.double()`), differentiable, or None where there is none."""
        return None

    def _may_keep(self) -> bool:
        """Whether `_keep` may be used: reading values makes other devices wait, and graphs cannot branch on them."""
        return not torch.is_grad_enabled() and self.base.device.type == "cpu" and not torch.compiler.is_compiling()

    def _keep(self, parts: list[Tensor], compose: Callable[[], Tensor]) -> Tensor:
        """R without gradients, kept until one of `parts`, which it is made of, has another value.

        Values, not version counters: writing through `.data` counts no version.
        """
        kept = self._tables.mixing
        if kept is None or not all(torch.equal(part, old) for part, old in zip(parts, kept[0], strict=True)):
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                kept = self._tables.mixing = ([part.clone() for part in parts], compose())
        return kept[1]

    def penalty(self) -> Tensor:
        """0-dim float32: orthogonality penalty to be added to the loss; 0 where R is orthogonal by construction."""
        return self.base.new_zeros(())

    def merge(self, *projections: nn.Linear | tuple[Tensor, Tensor | None]) -> None:
        """Multiply R into the projections that feed this rotary, for good; then R is the identity.

        Args:
            projections: `nn.Linear`s whose outputs are heads·c wide (the number of heads may differ, as in
                grouped-query attention), or (weight, bias) views of rows of a fused projection. Query and key
                projections of every layer that shares this rotary, each once.

        Raises:
            ValueError: none given, or one whose output is not a multiple of head_dim wide.
        """
        if not projections:
            raise ValueError("merge() needs the projections whose output this rotary turns, e.g. merge(q_proj, k_proj)")
        R = self.mixing()
        pairs = [(p.weight, p.bias) if isinstance(p, nn.Linear) else p for p in projections]
        for weight, _ in pairs:
            if weight.shape[0] % self.head_dim:
                raise ValueError(f"projection of width {weight.shape[0]} is no multiple of head_dim {self.head_dim}")
        if R is not None:
            for weight, bias in pairs:
                fold_(weight, bias, R)
        self.merged.fill_(True)
        self._merged = True

    # -- the two entrances --

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attention level: turn(x · R, positions); shapes as in `turn`."""
        R = self.mixing()
        return self._turn(mix(x, R), positions, 1, R)

    def rotate_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """`rotate` for keys; see `turn_keys`."""
        return self.turn_keys(mix(x, self.mixing()), positions)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embedding level, a drop-in: x (b, s, d) or (b, s, h, c) → the same shape, each head rotated.

        Raises:
            ValueError: a last dimension other than d, or other than (h, c).
        """
        if x.ndim == 3 and x.shape[-1] == self.dims:
            heads = x.unflatten(-1, (self.heads, self.head_dim))
        elif x.ndim == 4 and x.shape[-2:] == (self.heads, self.head_dim):
            heads = x
        else:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; want (b, s, {self.dims}) or (b, s, {self.heads}, {self.head_dim})"
            )
        R = self.mixing()
        return self._turn(mix(heads, R), positions, 2, R).reshape(x.shape)

    # -- precision and state --

    def _apply(self, fn, recurse: bool = True):
        """Moves as any module does, but never below float32, and the base is float32 always."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype or not tensor.is_floating_point():
                return moved
            if tensor is self.base or moved.dtype.itemsize < 4:
                return tensor.to(moved.device)
            return moved

        self._tables = TableCache()
        return super()._apply(keep, recurse)

    def _loaded(self) -> None:
        """Called after load_state_dict."""
        self.base_version += 1
        self._merged = not self.merged.is_meta and bool(self.merged)

    def extra_repr(self) -> str:
        base = "meta" if self.base.is_meta else f"{self.base.item():g}"
        return f"dims={self.dims}, heads={self.heads}, head_dim={self.head_dim}, base={base}"


def _column(radius: Tensor | float) -> Tensor | float:
    return radius.unsqueeze(-1) if isinstance(radius, Tensor) else radius


def _after_load(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Rotary)
    module._loaded()
