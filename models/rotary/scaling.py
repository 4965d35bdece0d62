"""Context-extension scalings: how frequencies change so that a model reads further than it was trained.

Each is a small frozen object that maps (base, head_dim) to frequencies; `gain` multiplies the rotated vectors. The
formulas agree with `transformers.modeling_rope_utils` (tests compare them), but follow a base that moves.
`Scaling.from_config` reads the one that a Hugging Face model was made with.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor


def geometric(base: Tensor, head_dim: int) -> Tensor:
    """base^(−2m/c) for m = 0…c/2−1, in base's dtype and on its device."""
    m = torch.arange(0, head_dim, 2, device=base.device, dtype=base.dtype)
    return base ** (m / -head_dim)


def _check_factor(factor: float, name: str = "factor") -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"{name} {factor} must be at least 1 (the new context length over the trained one)")


class Scaling:
    """No scaling, and the base class of the others.

    `switch_length` is the length of a call beyond which other frequencies are taken, None where they never change.

    Example:
        >>> Scaling.from_config({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0})
        LinearScaling(factor=4.0)
        >>> LinearScaling(4.0).frequencies(torch.tensor(10_000.0), head_dim=4)
        tensor([0.2500, 0.0025])
    """

    switch_length: ClassVar[int | None] = None

    @property
    def gain(self) -> float:
        """Factor on rotated queries and keys each (so squared on scores)."""
        return 1.0

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        """Radians per position, (c/2,), from a 0-dim base; `length` of the call: see `switch_length`."""
        return geometric(base, head_dim)

    @staticmethod
    def from_config(config: Any, layer_type: str | None = None) -> "Scaling | None":
        """The scaling of a model of `transformers`, None for plain RoPE.

        Args:
            config: its configuration, or its `rope_parameters`.
            layer_type: one of the configuration's `layer_types`, where they differ in their rotary.

        Raises:
            ValueError: a rope_type that has no counterpart here ("dynamic" changes with every length).
        """
        return _from_parameters(rope_parameters(config, layer_type))


def rope_parameters(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """A plain dict of what a Hugging Face configuration says of its rotary, `factor` filled in; empty if nothing."""
    given = config if isinstance(config, dict) else getattr(config, "rope_parameters", None) or {}
    nested = given.get(layer_type) if layer_type is not None else None
    found = dict(nested if isinstance(nested, dict) else given)
    original = found.get("original_max_position_embeddings")
    if found.get("factor") is None and original and not isinstance(config, dict):
        found["factor"] = config.max_position_embeddings / original
    return found


def _from_parameters(p: dict[str, Any]) -> Scaling | None:
    kind: str = p.get("rope_type") or "default"
    original: Any = p.get("original_max_position_embeddings")
    if kind in ("default", "mrope", "axial"):
        return None
    if kind == "linear":
        return LinearScaling(p["factor"])
    if kind == "proportional":
        return ProportionalScaling(p.get("factor") or 1.0, p.get("partial_rotary_factor", 1.0))
    if kind == "llama3":
        return Llama3Scaling(p["factor"], original, p["low_freq_factor"], p["high_freq_factor"])
    if kind == "longrope":
        return LongRoPEScaling(
            p["factor"], original, tuple(p["short_factor"]), tuple(p["long_factor"]), p.get("attention_factor")
        )
    if kind == "yarn":
        options = {name: p[name] for name in ("mscale", "mscale_all_dim", "attention_factor") if p.get(name)}
        return YaRNScaling(
            p["factor"],
            original,
            p.get("beta_fast") or 32.0,
            p.get("beta_slow") or 1.0,
            truncate=p.get("truncate", True),
            **options,
        )
    raise ValueError(f"rope_type {kind!r} has no counterpart here; give a rotary with a base and scaling of your own")


@dataclass(frozen=True)
class FactorScaling(Scaling):
    """Base class of scalings with a factor: the new context length over the trained one, at least 1."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)


class LinearScaling(FactorScaling):
    """Position interpolation: every frequency over `factor` (Chen et al. 2023, https://arxiv.org/abs/2306.15595).

    Example:
        >>> LinearScaling(4.0).frequencies(torch.tensor(10_000.0), head_dim=4)
        tensor([0.2500, 0.0025])
    """

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        return geometric(base, head_dim) / self.factor


class NTKScaling(FactorScaling):
    """NTK-aware: base·factor^(c/(c−2)), which interpolates the lowest frequency by `factor` and keeps the highest.

    Example:
        >>> NTKScaling(4.0).frequencies(torch.tensor(10_000.0), head_dim=4)  # the highest stays
        tensor([1.0000, 0.0025])
    """

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        if head_dim <= 2:
            raise ValueError(f"head_dim {head_dim} has a single frequency; NTK scaling needs at least 4")
        return geometric(base * self.factor ** (head_dim / (head_dim - 2)), head_dim)


@dataclass(frozen=True)
class YaRNScaling(FactorScaling):
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071): slow frequencies interpolated, fast ones kept.

    Args:
        original_length: context length of training, in positions.
        beta_fast, beta_slow: turns within original_length above which a frequency is kept, below which interpolated.
        attention_factor: gain; None means 0.1·mscale·ln(factor) + 1, over the same with `mscale_all_dim`.
        truncate: round the band between kept and interpolated outwards to whole pairs, as the paper's code does.
        mscale, mscale_all_dim: DeepSeek's factors of the gain; 1 and 0 are the paper's.

    Example:
        >>> YaRNScaling(4.0, original_length=64).frequencies(torch.tensor(10_000.0), head_dim=4)
        tensor([1.0000, 0.0025])
    """

    original_length: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(f"want 0 < beta_slow <= beta_fast, got {self.beta_slow} and {self.beta_fast}")

    @property
    def gain(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        log = 0.1 * math.log(self.factor)
        if not self.mscale_all_dim:  # `transformers` needs both to use either
            return log + 1
        return (self.mscale * log + 1) / (self.mscale_all_dim * log + 1)

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        def index(turns: float) -> Tensor:  # the m whose frequency makes this many turns in original_length
            return head_dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * base.log())

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = low.floor(), high.ceil()
        low, high = low.clamp(min=0), high.clamp(max=head_dim - 1)
        high = torch.where(high == low, high + 0.001, high)
        m = torch.arange(head_dim // 2, device=base.device, dtype=base.dtype)
        interpolated = ((m - low) / (high - low)).clamp(0, 1)
        kept = geometric(base, head_dim)
        return kept / self.factor * interpolated + kept * (1 - interpolated)


@dataclass(frozen=True)
class Llama3Scaling(FactorScaling):
    """Llama 3.1's (https://arxiv.org/abs/2407.21783): by wavelength, with a smooth band between kept and interpolated.

    Args:
        original_length: context length of training, in positions.
        low_frequency_factor: turns within original_length at and below which a frequency is divided by `factor`.
        high_frequency_factor: turns above which it is kept.

    Example:
        >>> Llama3Scaling(8.0, original_length=64).frequencies(torch.tensor(10_000.0), head_dim=4)
        tensor([1.0000, 0.0012])
    """

    factor: float = 8.0
    original_length: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"want 0 < low_frequency_factor < high_frequency_factor, "
                f"got {self.low_frequency_factor} and {self.high_frequency_factor}"
            )

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        kept = geometric(base, head_dim)
        turns = self.original_length * kept / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * keep + kept / self.factor * (1 - keep)


@dataclass(frozen=True)
class ProportionalScaling(FactorScaling):
    """p-RoPE (Barbero et al. 2024, https://arxiv.org/abs/2410.06205): the fastest pairs rotate, the others stand still.

    Frequencies are those of the whole head, so that p = 0.25 keeps the quarter of highest frequency.

    Args:
        proportion: p, in (0, 1].

    Example:
        >>> ProportionalScaling(proportion=0.5).frequencies(torch.tensor(10_000.0), head_dim=4)
        tensor([1., 0.])
    """

    proportion: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.proportion <= 1:
            raise ValueError(f"proportion {self.proportion} must be above 0 and at most 1")

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        rotating = torch.arange(head_dim // 2, device=base.device) < int(self.proportion * head_dim // 2)
        return geometric(base, head_dim) / self.factor * rotating


@dataclass(frozen=True)
class LongRoPEScaling(FactorScaling):
    """LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753): a factor for every frequency, found by search.

    Calls of at most `original_length` use the short factors, longer ones the long factors, as Phi-3 does. A cache is
    not read on past that length (RuntimeError): its keys were rotated with the other frequencies.

    Args:
        original_length: context length of training, in positions.
        short_factor, long_factor: divisors of the c/2 frequencies.
        attention_factor: gain; None means sqrt(1 + ln(factor)/ln(original_length)).

    Example:
        >>> scaling = LongRoPEScaling(2.0, original_length=64, short_factor=(1.0, 1.0), long_factor=(1.0, 2.0))
        >>> scaling.switch_length
        64
    """

    original_length: int = 4096
    short_factor: tuple[float, ...] = field(default=())
    long_factor: tuple[float, ...] = field(default=())
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.short_factor) != len(self.long_factor) or not self.long_factor:
            raise ValueError(
                f"short_factor and long_factor must hold one number for each pair; got {len(self.short_factor)} and "
                f"{len(self.long_factor)}"
            )

    @property
    def switch_length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.original_length

    @property
    def gain(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    def frequencies(self, base: Tensor, head_dim: int, length: Tensor | None = None) -> Tensor:
        if len(self.short_factor) != head_dim // 2:
            raise ValueError(f"{len(self.short_factor)} factors for the {head_dim // 2} pairs of head_dim {head_dim}")
        short, long = (base.new_tensor(factors) for factors in (self.short_factor, self.long_factor))
        divisor = short if length is None else torch.where(length > self.original_length, long, short)
        return geometric(base, head_dim) / divisor
