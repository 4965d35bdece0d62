"""Adapters through which `DynamicBase` moves the base of rotaries, ours and other people's.

An adapter recognises a module and yields handles to read and write its base. Frequencies are θ_m = B^(−2m/c)
for m = 0 … c/2−1 in every one of these libraries, so a base B' multiplies θ_m by (B'/B)^(−2m/c); written as this ratio,
linear interpolation on top stays as it was. Scalings whose bands move with the base (YaRN, llama3) have no such ratio:
there the module is built again from its configuration with the new base, and its frequencies are copied.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .loss_controller import Target
from .module_search import match_any, named_modules, to_float


class SetBaseTarget:
    """A module with `base` and `set_base`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def read(self) -> float:
        return to_float(self._module.base)

    def write(self, value: float) -> None:
        self._module.set_base(value)


class FrequencyTarget:
    """A tensor of frequencies, rescaled in place.

    Args:
        tensors: tensors that hold the same frequencies (c/2,), such as a buffer and its pristine copy.
        after: called after each write, to drop what was computed from old frequencies.

    Raises:
        ValueError: fewer than two frequencies, or not falling from the first to the second.
    """

    def __init__(self, name: str, tensors: Sequence[Tensor], after: Callable[[], None] = lambda: None) -> None:
        first = tensors[0].detach().double().cpu()
        if first.numel() < 2 or not 0 < float(first[1]) < float(first[0]):
            raise ValueError(
                f"{name} does not hold falling rotary frequencies: {first[:4].tolist()} (shape {tuple(first.shape)})"
            )
        self._tensors = tensors
        self._after = after
        self._pairs = first.numel()
        self._start = first
        self._start_base = self._base_of(first)

    def _base_of(self, frequencies: Tensor) -> float:
        return math.exp(-self._pairs * math.log(float(frequencies[1]) / float(frequencies[0])))

    def read(self) -> float:
        return self._base_of(self._tensors[0].detach()[:2].double().cpu())

    def write(self, value: float) -> None:
        exponents = torch.arange(self._pairs, dtype=torch.float64) / self._pairs
        scaled = self._start * (value / self._start_base) ** -exponents
        with torch.no_grad():
            for tensor in self._tensors:
                tensor.copy_(scaled)
        self._after()


class ConfiguredTarget:
    """The frequencies of a Hugging Face module, as the same class makes them from its configuration with another base.

    Args:
        name: of the module, for messages.
        module: with `config`, built as type(module)(config).
        key: name of its buffer of frequencies.
        prefix: what stands before `inv_freq` in it, a layer type and "_", or nothing.

    Raises:
        ValueError: it cannot be built again, or another than the present frequencies come out.
    """

    def __init__(self, name: str, module: Any, key: str, prefix: str) -> None:
        self._module, self._key, self._layer_type = module, key, prefix.removesuffix("_")
        try:
            present = getattr(module, key).detach().float().cpu()
            same = torch.allclose(self._made(self.read()), present, rtol=1e-4, atol=0)
            problem = "" if same else "other frequencies than it has come out"
        except Exception as error:  # whatever a stranger's constructor may raise
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise ValueError(
                f"{name or 'the model'} has frequencies whose bands move with the base, and cannot be built again from "
                f"its configuration with another one ({problem}); use rope_type 'default' or 'linear'"
            )

    def _parameters(self, config: Any) -> dict[str, Any]:
        parameters = config.rope_parameters
        return parameters[self._layer_type] if self._layer_type else parameters

    def _made(self, base: float) -> Tensor:
        config = copy.deepcopy(self._module.config)
        self._parameters(config)["rope_theta"] = base
        with torch.device("cpu"):
            return getattr(type(self._module)(config), self._key).detach().float()

    def read(self) -> float:
        moved = getattr(self._module, "_cubelet_bases", {})
        return float(moved.get(self._key, self._parameters(self._module.config)["rope_theta"]))

    def write(self, value: float) -> None:
        made = self._made(value)
        original = self._key.removesuffix("inv_freq") + "original_inv_freq"
        with torch.no_grad():
            for buffer in (getattr(self._module, self._key), getattr(self._module, original, None)):
                if buffer is not None:
                    buffer.copy_(made)
        self._module._cubelet_bases = {**getattr(self._module, "_cubelet_bases", {}), self._key: value}


def set_base(name: str, module: nn.Module) -> Iterator[tuple[str, Target]]:
    """Modules of this project, and any other that has `base` and `set_base`."""
    if hasattr(module, "base") and callable(getattr(module, "set_base", None)):
        yield name, SetBaseTarget(module)


def inv_freq(name: str, module: nn.Module) -> Iterator[tuple[str, Target]]:
    """Modules with buffers called `inv_freq` or `…_inv_freq`, as Hugging Face's rotary embeddings.

    Raises:
        ValueError: a rope type that recomputes its frequencies in forward, which would undo every change, or one whose
            bands move with the base in a module that cannot be built again.
    """
    for key, buffer in module.named_buffers(recurse=False):
        if not key.endswith("inv_freq") or key.endswith("original_inv_freq"):
            continue
        prefix = key.removesuffix("inv_freq")
        kinds = getattr(module, "rope_type", "default")
        kind = kinds.get(prefix.removesuffix("_"), "default") if isinstance(kinds, dict) else kinds
        if "dynamic" in kind or kind == "longrope":
            raise ValueError(
                f"{name or 'the model'} has rope_type {kind!r}, which recomputes inv_freq in forward and would undo a "
                "moved base; use rope_type 'default', 'linear', 'llama3' or 'yarn'"
            )
        found = f"{name}.{prefix.removesuffix('_')}".strip(".")
        if kind in ("yarn", "llama3", "proportional"):
            yield found, ConfiguredTarget(name, module, key, prefix)
            continue
        original = getattr(module, f"{prefix}original_inv_freq", None)
        tensors = [buffer] if original is None else [buffer, original]
        yield found, FrequencyTarget(f"{name}.{key}".strip("."), tensors)


def rotary_embedding_torch(name: str, module: nn.Module) -> Iterator[tuple[str, Target]]:
    """`rotary_embedding_torch.RotaryEmbedding` with language frequencies; its table of angles is invalidated."""
    frequencies = getattr(module, "freqs", None)
    if not isinstance(frequencies, Tensor) or getattr(module, "freqs_for", None) != "lang":
        return

    def forget() -> None:
        module.cached_freqs_seq_len = 0  # pyright: ignore[reportArgumentType]  # a plain int of that class

    yield name, FrequencyTarget(f"{name}.freqs".strip("."), [frequencies], forget)


KINDS: dict[str, Callable[[str, nn.Module], Iterator[tuple[str, Target]]]] = {
    "offered": set_base,
    "inv_freq": inv_freq,
    "rotary_embedding_torch": rotary_embedding_torch,
}


def find_bases(module: nn.Module, targets: Sequence[str]) -> dict[str, Target]:
    """Return handles on the bases in a module.

    Args:
        module: searched with all its submodules, each once.
        targets: kinds (`offered`, `inv_freq`, `rotary_embedding_torch`) and patterns of module names; the latter take
            modules of any kind.
    """
    kinds = [target for target in targets if target in KINDS]
    patterns = [target for target in targets if target not in KINDS]
    modules = dict(named_modules(module))
    by_name = set(match_any(patterns, modules))
    handles: dict[str, Target] = {}
    for name, submodule in modules.items():
        for kind, adapter in KINDS.items():
            if kind in kinds or name in by_name:
                here = dict(adapter(name, submodule))
                handles.update(here)
                if here:
                    break
    return handles
