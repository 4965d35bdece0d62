"""`parameter_groups`: which learning rate, weight decay and FAM settings each parameter of a model gets.

- Routing goes by module first and by name second, and knows no class of this project: a module counts as attention (or
  convolution) when a class in its ancestry is named so or it sets `is_attention = True`, as rotary when it offers
  `set_base`.
- The groups are plain `torch.optim` groups with names, so any optimizer takes them. What is meant for FAM alone is in
  one dict under the key `fam`: as keys of their own, `alpha` would reach RMSprop, ASGD and AdEMAMix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


class Kind(NamedTuple):
    """What a group of one kind gets: FAM's settings, and factors on the learning rate and weight decay."""

    handler: str
    alpha: float
    n_bands: int
    lr_factor: float = 1.0
    decay_factor: float = 1.0


KINDS = {
    "conv": Kind("conv", 0.9, 10),
    "attention": Kind("attention", 0.92, 12),
    "embedding": Kind("embedding", 0.95, 8, lr_factor=0.8, decay_factor=1.5),
    "norm": Kind("default", 0.9, 4, decay_factor=0.0),
    "rest": Kind("default", 0.9, 8),
}

# Whole parts of a qualified name (between dots and underscores), so that "format" is no norm and "convert" no conv.
NAME_PARTS = {
    "embedding": {"embed", "embedding", "embeddings", "wte", "wpe"},
    "norm": {"norm", "norm1", "norm2", "norm3", "layernorm", "rmsnorm", "ln", "ln1", "ln2", "bn", "batchnorm"},
    "conv": {"conv", "conv1", "conv2", "conv3", "conv1d", "conv2d", "conv3d"},
    "attention": {"attn", "attention", "qkv", "query", "queries", "q", "k", "v"},
}
UNDECAYED_NAMES = {"a_log", "dt_bias", "weight_g"}  # of state-space models, and the lengths of weight norm
UNDECAYED_WORDS = {
    "bias", "gain", "gains", "theta", "thetas", "angle", "angles", "freq", "freqs", "frequency", "frequencies", "base",
    "axis",
}  # fmt: skip
HEAD_WORDS = {"head", "classifier", "unembed", "unembedding", "logits"}  # hidden matrices for Muon they are not
ROTARY_WORDS = {"rotary", "rope", "sinusoidal"}
CONTAINERS = ("Block", "Layer", "Model", "Encoder", "Decoder", "Stack", "Net")


def _class_names(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__ if cls not in (nn.Module, object)]


def _named(module: nn.Module, word: str) -> bool:
    """Whether a class in the ancestry has the word in its name and is no mere container of such layers."""
    return any(word in name and not name.endswith(CONTAINERS) for name in _class_names(module))


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention layer, and not a block that merely contains one."""
    return getattr(module, "is_attention", False) is True or _named(module, "Attention")


def is_rotary(module: nn.Module) -> bool:
    """Whether a module is a rotary encoding: it offers `set_base`, or its class is named so."""
    named = any(part in name.lower() for name in _class_names(module) for part in ("rotary", "rope"))
    return callable(getattr(module, "set_base", None)) or named


def _is_gpt2_linear(module: nn.Module) -> bool:
    """Whether a module is the linear layer that GPT-2 calls Conv1D: one matrix, no kernel."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def _kind_by_module(owners: list[nn.Module]) -> str | None:
    """The kind told by the chain of modules that hold a parameter, innermost first."""
    for module in owners:
        if isinstance(module, NORMS) or any(name.endswith("Norm") for name in _class_names(module)):
            return "norm"
        if is_attention(module):
            return "attention"
        if isinstance(module, _ConvNd) or (_named(module, "Conv") and not _is_gpt2_linear(module)):
            return "conv"
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "LearnedSinusoidal" in _class_names(module):
            return "embedding"
    return None


def _kind_by_name(name: str) -> str:
    parts = re.split(r"[._]", re.sub("weight_[gv]$", "weight", name.lower()))  # of weight norm; no query, key, value
    return next((kind for kind, words in NAME_PARTS.items() if not words.isdisjoint(parts)), "rest")


def _decays(name: str, parameter: Tensor, owners: list[nn.Module]) -> bool:
    """Matrices decay; vectors, scalars, everything inside a rotary, and sinusoidal tables do not.

    The words that name a bias or an angle are looked for in the parameter's own name only (a model called `base_model`
    is no base); under a parametrization that is the name of what is parametrized.
    """
    *path, own = name.lower().split(".")
    if "parametrizations" in path[:-1]:
        is_length = own == "original0" and any("WeightNorm" in type(module).__name__ for module in owners[0].children())
        if is_length:  # of weight norm
            return False
        own = path[path.index("parametrizations") + 1]
    if getattr(parameter, "_no_weight_decay", False) or own in UNDECAYED_NAMES:
        return False
    if parameter.ndim < 2 or not UNDECAYED_WORDS.isdisjoint(own.split("_")):
        return False
    if not ROTARY_WORDS.isdisjoint(re.split(r"[._]", name.lower())):
        return False
    return not any(is_rotary(module) or "LearnedSinusoidal" in _class_names(module) for module in owners)


def _is_hidden(name: str, parameter: Tensor, kind: str) -> bool:
    """Whether a parameter is the matrix of a hidden layer: of attention, or of another layer that is no head."""
    is_head = not HEAD_WORDS.isdisjoint(re.split(r"[._]", name.lower()))
    return parameter.ndim == 2 and (kind == "attention" or (kind == "rest" and not is_head))


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[nn.Module]]]:
    """Each parameter once, with its first qualified name and the modules around it, innermost first.

    A parameter shared by several modules (tied embeddings) is listed with the chain of an embedding if one holds it.
    """
    found: dict[nn.Parameter, tuple[str, list[nn.Module]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path = name.split(".")[:-1]
        chain = [modules[".".join(path[:depth])] for depth in range(len(path), -1, -1)]
        known = found.get(parameter)
        if known is None:
            found[parameter] = (name, chain)
        elif isinstance(chain[0], nn.Embedding) and not isinstance(known[1][0], nn.Embedding):
            found[parameter] = (known[0], chain)
    yield from ((name, parameter, chain) for parameter, (name, chain) in found.items())


def _layer(name: str, kind: str, layers: int) -> int:
    """Depth of a parameter: 0 for embeddings, i + 1 in block i, and one more for what comes after the blocks."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[0] + 1 if numbers else 0 if kind == "embedding" else layers + 1


def parameter_groups(
    model: nn.Module,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.0,
    *,
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return named `torch.optim` parameter groups of a model, every trainable parameter in exactly one of them.

    | kind | α | bands | learning rate | weight decay |
    |---|---|---|---|---|
    | conv | 0.9 | 10 | lr | decay |
    | attention | 0.92 | 12 | lr | decay |
    | embedding | 0.95 | 8 | 0.8·lr | 1.5·decay |
    | norm | 0.9 | 4 | lr | 0 |
    | rest | 0.9 | 8 | lr | decay |

    Within a kind these form a second group without weight decay: vectors, biases, gains, everything inside a rotary,
    sinusoidal tables, lengths of weight norm, `A_log`, parameters with `_no_weight_decay = True`, and those that the
    model names in a method `no_weight_decay()`.

    Args:
        model: the module to train. Frozen parameters are left out.
        lr: base learning rate, per optimizer step.
        weight_decay: base weight decay.
        patterns: for parameters whose qualified name matches a pattern (as of file names; the first that matches), keys
            of their group: "lr_factor" and "decay_factor" multiply, anything else ("weight_decay", "base", …) is set.
        layer_decay: factor on the learning rate for each layer below the top, by the first number in the name
            ("blocks.3."); embeddings lie below the first. 1 for none, 0.65 to 0.9 for fine-tuning.

    Returns:
        One dict per non-empty group: `params` (pairs of name and parameter, as `named_parameters()` gives them),
        `name`, `lr`, `weight_decay`, and `fam`: FAM's `handler`, `alpha`, `n_bands` and, for Muon, which parameters are
        `hidden` matrices.

    Raises:
        ValueError: if lr, weight_decay or layer_decay is out of range, a pattern matches no name, or nothing in the
            model is trainable.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
        >>> for group in parameter_groups(model, lr=0.1, weight_decay=0.01, patterns={"1.*": {"lr_factor": 0.5}}):
        ...     print(group["name"], [name for name, _ in group["params"]], round(group["lr"], 3))
        embedding ['0.weight'] 0.08
        rest 1.* ['1.weight'] 0.05
        rest_no_decay 1.* ['1.bias'] 0.05
    """
    if lr < 0 or weight_decay < 0:
        raise ValueError(f"lr and weight_decay must not be negative, got lr={lr}, weight_decay={weight_decay}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay {layer_decay} must be above 0 and at most 1")
    patterns = patterns or {}
    undecayed = set(getattr(model, "no_weight_decay", set)())
    found = [
        (name, parameter, _kind_by_module(owners) or _kind_by_name(name), owners)
        for name, parameter, owners in _owners(model)
        if parameter.requires_grad
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: all are frozen, or there are none")
    layers = max(_layer(name, "", -2) for name, *_ in found)
    members: dict[tuple[str, bool, str, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter, kind, owners in found:
        decays = kind != "norm" and name not in undecayed and _decays(name, parameter, owners)
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), "")
        below = max(0, layers + 1 - _layer(name, kind, layers)) if layer_decay < 1 else 0
        members.setdefault((kind, decays, pattern, below), []).append((name, parameter))
    unused = [pattern for pattern in patterns if not any(key[2] == pattern for key in members)]
    if unused:
        raise ValueError(f"pattern {unused[0]!r} matches no trainable parameter's name first; names: {found[0][0]}, …")
    kinds = list(KINDS)
    groups = []
    for kind, decays, pattern, below in sorted(members, key=lambda key: (kinds.index(key[0]), not key[1], *key[2:])):
        settings, pairs = KINDS[kind], members[kind, decays, pattern, below]
        changes = dict(patterns.get(pattern, {}))
        name = kind if decays or kind == "norm" else f"{kind}_no_decay"
        group = {
            "params": pairs,
            "name": f"{name} {pattern}".strip() + (f" layer {-below}" if below else ""),
            "lr": lr * settings.lr_factor * layer_decay**below * changes.pop("lr_factor", 1.0),
            "weight_decay": weight_decay * (settings.decay_factor * decays) * changes.pop("decay_factor", 1.0),
            "fam": {
                "handler": settings.handler, "alpha": settings.alpha, "n_bands": settings.n_bands,
                "hidden": [decays and _is_hidden(name, parameter, kind) for name, parameter in pairs],
            },
        }  # fmt: skip
        groups.append({**group, **changes})
    return groups
