"""What every rotary shares: the base, the tables, the two entrances, and folding.

Notation: b batch, h heads, s sequence, c = dims / heads; row vectors, so y = x·M. A rotary computes, per head,
y = RoPE_p(x · R): R (c, c) does not depend on the position, RoPE turns the interleaved pairs (2m, 2m+1) by p·θ_m with
θ_m = base^(−2m/c) (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Choices, each for a measured reason:

- Eager code multiplies complex numbers: reading pairs once and writing them once costs about what a copy costs, while
  the usual "rotate half" forms six temporaries. Under torch.compile the same sum is spelled with real numbers, which
  Inductor fuses (it has no code for complex numbers).
- Angles are formed in float64 and stored as float32 (complex64): position·frequency in float32 is off by 4e-4 radians
  at position 4,096, and in bfloat16 two out of three positions do not exist.
- Tables are no buffers. They follow from `base`, so they do not belong in a state_dict, DDP should not broadcast them
  and `.bfloat16()` must not touch them. In eager code they are kept and checked against the version of `base`;
  compiled code computes them inside the graph, so that it can neither use a stale one nor recompile for a new one.
- The base itself is stored, not its logarithm: 10000 and 500000 are exact in float32, their logarithms are not.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .fold import fold_
from .scaling import Scaling


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


def check_positions(positions: Tensor, batch: int, length: int) -> None:
    """TypeError unless integer, ValueError unless (s,) or (b, s)."""
    if not isinstance(positions, Tensor) or positions.is_floating_point() or positions.is_complex():
        kind = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"positions must be an integer tensor, got {kind}; use torch.arange(s) or positions.long()")
    if positions.dtype == torch.bool:
        raise TypeError("positions are boolean; that is a mask, pass its cumulative sum minus 1 instead")
    if positions.shape != (length,) and positions.shape != (batch, length):
        raise ValueError(f"positions have shape {tuple(positions.shape)}; want ({length},) or ({batch}, {length})")


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on the one backend that has no float64 (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def turn_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Multiply interleaved pairs of x (..., c) by a complex table (..., c/2); the result has x's memory order."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    pairs = wide.unflatten(-1, (-1, 2))
    try:
        numbers = torch.view_as_complex(pairs)
    except RuntimeError:  # an odd stride or storage offset, or a last dimension that is not dense
        numbers = torch.view_as_complex(pairs.contiguous())
    return torch.view_as_real(numbers * table).flatten(-2).to(x.dtype)


def turn_pairs_real(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as turn_pairs in real numbers, tables (..., c/2): what torch.compile fuses into one pass."""
    even, odd = x.unflatten(-1, (-1, 2)).to(cos.dtype).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class TableCache:
    """The eager tables of one rotary. Copies and pickles as an empty one: everything in it follows from the base."""

    __slots__ = ("by_positions", "key", "rows")

    def __init__(self) -> None:
        self.key: Any = None
        self.rows: Tensor | None = None
        self.by_positions: tuple[Any, Tensor, int, Tensor] | None = None

    def __deepcopy__(self, memo: dict) -> "TableCache":
        return TableCache()

    def __reduce__(self):
        return TableCache, ()


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
        base_version: counts changes of the base; a key-value cache compares it to refuse keys of another base.
        no_weight_decay: names of this module's own parameters that decay would only pull towards the start.
    """

    is_relative: bool = True
    needs_even: bool = True
    no_weight_decay: tuple[str, ...] = ()
    base: Tensor

    def __init__(self, dims: int, heads: int, *, base: float = 10_000.0, scaling: Scaling | None = None) -> None:
        super().__init__()
        self.head_dim = check_heads(dims, heads, even=self.needs_even)
        self.dims, self.heads, self.scaling = dims, heads, scaling
        self.initial_base = check_base(base)
        self.register_buffer("base", torch.tensor(self.initial_base, dtype=torch.float32))
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

    def frequencies(self) -> Tensor:
        """θ_m in radians per position, (c/2,) float64, from the current base."""
        base = self.base.to(wide_dtype(self.base.device))
        return (self.scaling or Scaling()).frequencies(base, self.head_dim)

    def gain(self) -> float:
        """A constant factor of the rotated vector; 1 but for YaRN's attention factor and `output_scale`."""
        return 1.0 if self.scaling is None else self.scaling.gain

    # -- the position-dependent part --

    def _learns_frequencies(self) -> bool:
        return False

    def _angles(self, positions: Tensor) -> Tensor:
        """positions (...,) → angles (..., c/2) float64."""
        return positions.to(wide_dtype(positions.device)).unsqueeze(-1) * self.frequencies()

    def _cis(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        angles = self._angles(positions)
        return torch.polar(torch.full_like(angles, self.gain()), angles).to(dtype)

    def _table(self, x: Tensor, length: int, positions: Tensor | None) -> Tensor:
        """Complex table (s, c/2) or (b, s, c/2) for x, kept where nothing in it learns."""
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        if self._learns_frequencies():
            steps = torch.arange(length, device=x.device) if positions is None else positions
            return self._cis(steps, dtype)
        version = 0 if self.base.is_inference() else self.base._version
        key, cache = (dtype, x.device, self.base_version, version), self._tables
        # A table that was made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if positions is None:
                if cache.key != key or cache.rows is None or cache.rows.shape[0] < length:
                    rows = max(64, 1 << (length - 1).bit_length())
                    cache.key, cache.rows = key, self._cis(torch.arange(rows, device=x.device), dtype)
                return cache.rows[:length]
            if positions.is_inference():
                return self._cis(positions, dtype)
            last = cache.by_positions
            if last and last[0] == key and last[1] is positions and last[2] == positions._version:
                return last[3]
            table = self._cis(positions, dtype)
            cache.by_positions = (key, positions, positions._version, table)
            return table

    def turn(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The position-dependent part alone, for projections into which R was folded.

        Args:
            x: (b, h, s, c); h may be any number of heads, and the memory may be that of (b, s, h, c).
            positions: integers (s,) or (b, s); None means 0…s−1.

        Returns: x's shape, dtype and memory order.
        """
        return self._turn(x, positions, head_axis=1)

    def _turn(self, x: Tensor, positions: Tensor | None, head_axis: int) -> Tensor:
        """turn for x (b, h, s, c), head_axis 1, or (b, s, h, c), head_axis 2."""
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; want 4 dimensions, the last of head_dim {self.head_dim}")
        batch, length = x.shape[0], x.shape[3 - head_axis]
        if positions is not None:
            check_positions(positions, batch, length)
        if torch.compiler.is_compiling():
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            angles = self._angles(torch.arange(length, device=x.device) if positions is None else positions)
            angles = self._spread(angles, head_axis)
            gain = self.gain()
            return turn_pairs_real(x, (angles.cos() * gain).to(dtype), (angles.sin() * gain).to(dtype))
        return turn_pairs(x, self._spread(self._table(x, length, positions), head_axis))

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
        self._forget_mixing()
        self._merged = True

    def _forget_mixing(self) -> None:
        """Set what R is made of to the identity, so that a checkpoint of a merged model loads anywhere."""

    # -- the two entrances --

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attention level: turn(x · R, positions); shapes as in `turn`."""
        return self.turn(self._mix(x), positions)

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
        return self._turn(self._mix(heads), positions, head_axis=2).view(x.shape)

    def _mix(self, x: Tensor) -> Tensor:
        """x · R in x's memory order and dtype."""
        R = self.mixing()
        if R is None:
            return x
        R = R.to(torch.promote_types(x.dtype, torch.float32))
        wide = x.to(R.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if x.ndim == 4 and x.stride(1) < x.stride(2):  # memory of (b, s, h, c) seen as (b, h, s, c): do not copy it
                return (wide.transpose(1, 2) @ R).transpose(1, 2).to(x.dtype)
            return (wide @ R).to(x.dtype)

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

        return super()._apply(keep, recurse)

    def _loaded(self) -> None:
        """Called after load_state_dict."""
        self.base_version += 1
        self._merged = False

    def extra_repr(self) -> str:
        base = "meta" if self.base.is_meta else f"{self.base.item():g}"
        return f"dims={self.dims}, heads={self.heads}, head_dim={self.head_dim}, base={base}"


def _after_load(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Rotary)
    module._loaded()
