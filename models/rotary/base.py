"""What every rotary shares: the base, the table, the two entrances, and merging.

Notation: b batch, h heads, s sequence, c = dims / heads; row vectors, so y = x·M. A rotary computes, per head,
y = RoPE_p(x · R): R (c, c) does not depend on the position, RoPE rotates the interleaved pairs (2m, 2m+1) by p·θ_m with
θ_m = base^(−2m/c) (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Choices, each for a measured reason:

- Eager code multiplies complex numbers: reading pairs once and writing them once costs about what a copy costs, while
  the usual "rotate half" forms six temporaries. Inductor has no code for complex numbers; what compiled graphs do
  instead is in kernels/rotate_pairs.py.
- Angles are formed in float64 and stored as float32 (complex64): position·frequency in float32 is off by 4e-4 radians
  at position 4,096, and in bfloat16 two out of three positions do not exist.
- There is one table per dtype, device and base, read at the positions. It is no buffer: it follows from `base`, so it
  does not belong in a state_dict, DDP should not broadcast it and `.bfloat16()` must not touch it. Compiled code asks
  for it inside the graph, so that it can neither use a stale one nor recompile for a new one.
- The base itself is stored, not its logarithm: 10000 and 500000 are exact in float32, their logarithms are not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.kept import Kept, KeptGraph, make_lasting
from ..kernels.rotate_pairs import rotate_in_graph
from ..kernels.switch import full_precision
from .rotation_matrix import fold_, right_multiply
from .scaling import Scaling

MOST_ROWS = 1 << 17  # of a table read at given positions; beyond, angles are made for the positions themselves


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


def check_positions(positions: Tensor, batch: int, length: int, axes: int = 1, floating: bool = False) -> None:
    """TypeError unless integer (or, if allowed, floating), ValueError unless (s,) or (b, s); (…, axes) of several."""
    kind = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
    if not isinstance(positions, Tensor) or positions.is_complex() or (positions.is_floating_point() and not floating):
        raise TypeError(f"positions must be an integer tensor, got {kind}; use torch.arange(s) or positions.long()")
    if positions.dtype == torch.bool:
        raise TypeError("positions are boolean; that is a mask, pass its cumulative sum minus 1 instead")
    last = (axes,) if axes > 1 else ()
    got = positions.shape[: positions.ndim - len(last)]
    # Size by size: in a compiled graph a size may be a symbol, which no tuple that holds its number is found to equal.
    fits = 1 <= len(got) <= 2 and got[-1] == length and (len(got) == 1 or got[0] == batch)
    if not fits or (last and positions.shape[-1] != axes):
        want = f"{(length, *last)} or {(batch, length, *last)}"
        raise ValueError(f"positions have shape {tuple(positions.shape)}; want {want}")


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on the one backend that has no float64 (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Multiply the interleaved pairs of x (..., c) by a complex table (..., c/2) that broadcasts.

    Returns: x's shape, dtype and memory order.
    """
    pairs = x.to(table.real.dtype).unflatten(-1, (-1, 2))  # (..., c/2, 2)
    try:
        numbers = torch.view_as_complex(pairs)  # (..., c/2)
    except RuntimeError:  # an odd stride or storage offset, or a last dimension that is not dense
        numbers = torch.view_as_complex(pairs.contiguous())
    return torch.view_as_real(numbers * table).flatten(-2).to(x.dtype)  # (..., c)


class Rotary(nn.Module):
    """The interface, and all of what does not depend on the variant. Use a subclass; `RoPE` is the plain one.

    A variant overrides `frequencies` or `_polar` (what rotates with the position), `_compose` (R), or both.

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
        table_varies: whether the table is made anew at every call (because something in it learns).

    Example:
        >>> class Reversed(Rotary):  # the slowest pair first
        ...     def frequencies(self, length=None):
        ...         return super().frequencies(length).flip(0)
        >>> Reversed(dims=16, heads=2).rotate(torch.ones(1, 2, 5, 8)).shape
        torch.Size([1, 2, 5, 8])
    """

    is_relative: bool = True
    position_axes: int = 1
    needs_even: bool = True
    has_matrix: bool = False  # whether there is an R
    table_varies: bool = False
    floating_positions: bool = False
    per_head: bool = False  # whether the table has a head axis of its own
    is_pairwise: bool = True  # R and rotations of pairs are all there is, so that a table can carry it
    _span: tuple[int, int] | None = None  # the first feature that rotates and the first behind, where others do not
    base: Tensor
    merged: Tensor

    def __init__(self, dims: int, heads: int, *, base: float = 10_000.0, scaling: Scaling | None = None) -> None:
        super().__init__()
        self.head_dim = check_heads(dims, heads, even=self.needs_even)
        self.dims, self.heads, self.scaling = dims, heads, scaling
        self._switches = scaling is not None and scaling.switch_length is not None  # other frequencies for long calls
        self.initial_base = check_base(base)
        self.register_buffer("base", torch.tensor(self.initial_base, dtype=torch.float32))
        # In the state_dict, so that a checkpoint of a merged model is not rotated twice; read when loading only.
        self.register_buffer("merged", torch.tensor(False))
        self.base_version = 0
        self._merged = False
        self._placed: Callable[[], Tensor | None] | None = None
        self._rows, self._at_positions, self._R, self._learned = Kept(), Kept(), Kept(), KeptGraph()
        self.register_load_state_dict_pre_hook(_before_load)
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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Back to the constructor's values, for a module that was built on the meta device and then `to_empty`."""
        self.base.fill_(self.initial_base)
        self.base_version += 1
        self.merged.fill_(False)
        self._merged = False

    def frequencies(self, length: Tensor | None = None) -> Tensor:
        """θ_m in radians per position, (c/2,) float64, from the current base; `length` of the call as in `Scaling`."""
        base = self.base.to(wide_dtype(self.base.device))
        return (self.scaling or Scaling()).frequencies(base, self.head_dim, length)

    def gain(self) -> float:
        """A constant factor of the rotated vector; 1 but for YaRN's attention factor and `output_scale`."""
        return 1.0 if self.scaling is None else self.scaling.gain

    # -- the position-dependent part --

    def _default_positions(self, length: int, device: torch.device) -> Tensor:
        return torch.arange(length, device=device)

    def _polar(self, positions: Tensor, inverse: bool = False) -> tuple[Tensor | float, Tensor]:
        """Radius and angle of every pair, float64: positions (...,) → angles (..., n); `inverse`: radius to the −1."""
        frequencies = self.frequencies(positions.max() + 1) if self._switches else self.frequencies()
        return self.gain(), positions.to(wide_dtype(positions.device)).unsqueeze(-1) * frequencies

    def _cis(self, positions: Tensor, dtype: torch.dtype, inverse: bool = False) -> Tensor:
        radius, angles = self._polar(positions, inverse)
        return torch.polar(torch.ones_like(angles) * radius, angles).to(dtype)

    def _table(self, x: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
        """exp(i·angle) of every pair of x (b, h, s, c) times its radius: complex (s, n) or (b, 1, s, n)."""
        length, base, rows = x.shape[2], self.base, self._rows
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        rows_needed = length if positions is None else _rows_needed(positions, self.position_axes)
        if self.table_varies or self._switches or rows_needed is None:
            at = self._default_positions(length, x.device) if positions is None else positions
            table = self.table_at(at, dtype, inverse)
        else:
            if base.device.type == "cpu":
                mark: Any = base.item()  # its value: DDP writes buffers, unchanged, before every forward
            else:  # reading the value would wait for the device
                mark = (self.base_version, 0 if base.is_inference() else base._version)
            if rows.parts != (dtype, x.device, mark) or rows.value.shape[0] < rows_needed:
                steps = self._default_positions(max(64, 1 << (rows_needed - 1).bit_length()), x.device)
                rows.value = make_lasting(lambda: self._cis(steps, dtype))  # (rows, n)
                rows.parts = (dtype, x.device, mark)
            if positions is None:
                table = rows.value[:length]
            elif positions.shape == (1,):  # a step of decoding: a view, in a fifth of the time
                table = rows.value[rows_needed - 1 : rows_needed]
            else:
                table = rows.value[positions]
        return table if table.ndim == 2 or self.per_head else table.unsqueeze(1)  # (b, 1, s, n)

    def table_at(self, positions: Tensor, dtype: torch.dtype, inverse: bool = False) -> Tensor:
        """Radius · exp(i·angle) at these positions, (…, n); made once for all layers that share this rotary."""
        make = partial(self._cis, positions, dtype, inverse)
        if not (self.table_varies or positions.requires_grad):
            return self._at_positions.get([self.base, positions], make, dtype)
        return self._learned.get([self.base, positions, *self.parameters()], make, (dtype, inverse))

    def apply_positions(
        self, x: Tensor, positions: Tensor | None = None, *, inverse: bool = False, width: int | None = None
    ) -> Tensor:
        """The position-dependent part alone, for projections into which R was folded.

        Args:
            x: (b, h, s, c); h may be any number of heads, and the memory may be that of (b, s, h, c).
            positions: integers (s,) or (b, s); None means 0…s−1.
            inverse: take the radii, where they are not constant (xPos), to the −1.
            width: features of x, all of which rotate, where they are others than those of a head.

        Returns: x's shape, dtype and memory order.
        """
        if x.ndim != 4 or x.shape[-1] != (width or self.head_dim):
            raise ValueError(f"x has shape {tuple(x.shape)}; want 4 dimensions, the last of head_dim {self.head_dim}")
        if self._span is not None and width is None:
            before, part, after = x.tensor_split(self._span, dim=-1)  # (b, h, s, first), (b, h, s, 2n), …
            part = Rotary.apply_positions(self, part, positions, inverse=inverse, width=part.shape[-1])
            return torch.cat((before, part, after), dim=-1)
        if positions is not None:
            check_positions(positions, x.shape[0], x.shape[2], self.position_axes, self.floating_positions)
        if torch.compiler.is_compiling():
            steady = not self.table_varies and not self._switches and self.position_axes == 1
            polar = partial(self._polar, inverse=inverse)
            steps = partial(self._default_positions, device=x.device)
            return rotate_in_graph(x, positions, polar, steps, steady, self.per_head)
        return apply_rotary(x, self._table(x, positions, inverse))

    def apply_key_positions(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """`apply_positions` for keys, which differs where queries and keys are scaled against each other (xPos)."""
        return self.apply_positions(x, positions)

    # -- the position-independent part --

    def _compose(self) -> Tensor:
        """R (c, c), differentiable, of the parameters and buffers of this module; called where `has_matrix`."""
        raise NotImplementedError(f"{type(self).__name__} has a matrix: write _compose")

    def mixing(self) -> Tensor | None:
        """R (c, c) in float32 (float64 after `.double()`), differentiable, or None where there is none."""
        if self._merged or not self.has_matrix:
            return None
        with full_precision(self.base.device):
            if torch.is_grad_enabled():
                return self._compose()
            buffers = [buffer for name, buffer in self.named_buffers(recurse=False) if name not in ("base", "merged")]
            return self._R.get([*self.parameters(recurse=False), *buffers], self._compose)

    def rotation_matrix(self) -> Tensor | None:
        """Another name of `mixing`."""
        return self.mixing()

    def penalty(self) -> Tensor:
        """0-dim float32: orthogonality penalty to be added to the loss; 0 where R is orthogonal by construction."""
        return self.base.new_zeros(())

    def merge(self, *projections: nn.Linear | tuple[Tensor, Tensor | None]) -> None:
        """Multiply R into the projections that feed this rotary, for good; then R is the identity.

        Args:
            projections: linear layers (heads·c rows, as many heads as they have), or (weight, bias) of some rows.
        """
        if not projections:
            raise ValueError("merge() needs the projections that feed this rotary, e.g. merge(q_proj, k_proj)")
        R = self.mixing() if self._placed is None else self._placed()
        pairs = [(p.weight, p.bias) if isinstance(p, nn.Linear) else p for p in projections]
        for weight, _ in pairs:
            if weight.shape[0] % (width := self.head_dim if R is None else len(R)):
                raise ValueError(f"projection of width {weight.shape[0]} is no multiple of head_dim {width}")
        if R is not None:
            for weight, bias in pairs:
                fold_(weight, bias, R)
        self.merged.fill_(True)
        self._merged = True

    def place_matrix(self, matrix: Callable[[], Tensor | None] | None) -> None:
        """Tell `merge` what R is in a model that orders features its own way; None: it cannot be merged there."""

        def refuse() -> Tensor:
            raise ValueError("R stands behind a norm in this model and cannot be merged into its projections")

        self._placed = matrix or refuse

    # -- the two entrances --

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attention level: apply_positions(x · R, positions); shapes as there."""
        return self.apply_positions(right_multiply(x, self.mixing()), positions)

    def rotate_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """`rotate` for keys; see `apply_key_positions`."""
        return self.apply_key_positions(right_multiply(x, self.mixing()), positions)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embedding level, a drop-in: x (b, s, d) or (b, s, h, c) → the same shape, each head rotated.

        Raises:
            ValueError: a last dimension other than d, or other than (h, c).
        """
        if x.shape[2:] not in ((self.dims,), (self.heads, self.head_dim)):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; want (b, s, {self.dims}) or (b, s, {self.heads}, {self.head_dim})"
            )
        heads = x.unflatten(-1, (self.heads, self.head_dim)) if x.ndim == 3 else x  # (b, s, h, c)
        return self.rotate(heads.transpose(1, 2), positions).transpose(1, 2).reshape(x.shape)

    def turn(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The name of `apply_positions` in 0.1.0."""
        return self.apply_positions(x, positions)

    def turn_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The name of `apply_key_positions` in 0.1.0."""
        return self.apply_key_positions(x, positions)

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

        self._rows, self._at_positions, self._R, self._learned = Kept(), Kept(), Kept(), KeptGraph()
        return super()._apply(keep, recurse)

    def _read_base(self, stored: Tensor) -> tuple[Tensor, str]:
        """The base in float32, and what is wrong with it."""
        value = float(stored)
        if not (math.isfinite(value) and value > 1):
            return stored, f"base {value:g} in the state_dict must be a finite number above 1 (10000 is usual)"
        if stored.is_floating_point() and stored.dtype.itemsize < 4:
            own = torch.tensor(self.initial_base if self.base.is_meta else float(self.base))
            if float(own.to(stored.dtype)) != value:
                kind = str(stored.dtype).removeprefix("torch.")
                return stored, (
                    f"the state_dict holds {value:g} in {kind}, which cannot tell bases near it apart, and this rotary "
                    f"has {own.item():g}: save the base in float32, or build the rotary with the base that was meant"
                )
            return own.to(stored.device), ""  # the base that was rounded when the state was cast
        return stored.float(), ""

    def _loaded(self) -> None:
        """Called after load_state_dict."""
        self.base_version += 1
        self._merged = not self.merged.is_meta and bool(self.merged)

    def extra_repr(self) -> str:
        base = "meta" if self.base.is_meta else f"{self.base.item():g}"
        return f"dims={self.dims}, heads={self.heads}, head_dim={self.head_dim}, base={base}"


def _rows_needed(positions: Tensor, axes: int) -> int | None:
    """How long a table must be to be read at these positions; None where that would not do, or not be worth it."""
    if axes > 1 or positions.is_floating_point() or positions.device.type != "cpu" or not positions.numel():
        return None
    if positions.numel() == 1:  # a step of decoding
        low = high = int(positions)
    else:
        low, high = (int(end) for end in positions.aminmax())
    return high + 1 if low >= 0 and high < MOST_ROWS else None


def _before_load(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Neither a wrong base nor a half-precision copy of what must be exact gets in."""
    assert isinstance(module, Rotary)
    if (stored := state_dict.get(f"{prefix}base")) is not None and not stored.is_meta:
        state_dict[f"{prefix}base"], wrong = module._read_base(stored)
        rest[-1].extend([f"{prefix}base: {wrong}"] if wrong else [])  # the error messages
    anchor = state_dict.get(f"{prefix}anchor")
    if anchor is not None and not anchor.is_meta and anchor.dtype.itemsize < 4:  # rounded, so no longer orthogonal
        U, _, V = torch.linalg.svd(anchor.double())
        state_dict[f"{prefix}anchor"] = (U @ V).float()


def _after_load(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Rotary)
    module._loaded()
