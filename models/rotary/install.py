"""`install` and `uninstall`: a rotary of this room in somebody else's model, without touching its code.

Three places, found from the model or named by `at`:

- self-attention modules with `q_proj` and `k_proj` (Llama-like, Whisper-like): hooks turn what the projections (or the
  `q_norm`/`k_norm` behind them) put out, and hand the module cos = 1, sin = 0 where it expects position embeddings;
- a module whose forward takes queries, keys and positions: replaced by one with the same signature;
- an embedding: its output is turned.

Choice: forward hooks, because they leave classes, weights and state_dict names of the model alone, work per instance,
and come off without a trace. Positions are read from what the hooked module is called with: `position_ids`, or the
length of `past_key_values`, or else 0…s−1.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .base import Rotary

QUERY_NAMES = ("q", "query", "queries", "query_states", "x", "t")
KEY_NAMES = ("k", "key", "keys", "key_states")
POSITION_NAMES = ("position_ids", "positions", "input_pos", "offsets")

RotaryFactory = Callable[[int, int], Rotary]


def install(
    model: nn.Module,
    rotary: Rotary | RotaryFactory,
    *,
    at: str | None = None,
    layout: str | None = None,
    head_axis: int = 1,
) -> nn.ModuleList:
    """Put a rotary into a model, or in place of its own; `uninstall` restores the model exactly.

    Args:
        model: changed in place; the rotaries become its submodule `cubelet_rotary`, so they train and are saved.
        rotary: a `Rotary` shared by all places, or a callable (dims, heads) → Rotary that makes one for each.
        at: name of a submodule: an embedding to put the rotary after, a module that takes (q, k, positions), a rotary
            embedding of the Hugging Face kind, or a part whose self-attention modules get the rotary. None: every
            self-attention module of the model.
        layout: how the model pairs features: "interleaved" (2m, 2m + 1) or "half" (m, m + c/2). None: "half" where the
            attention takes position embeddings, as pretrained Llama weights want it, and "interleaved" elsewhere.
        head_axis: for a module that takes (q, k, positions): 1 for (b, h, s, c), 2 for (b, s, h, c).

    Returns: the rotaries, in the order of the places.

    Raises:
        ValueError: no such submodule, nothing to install at, a rotary of another head_dim, something installed there.
    """
    if layout not in (None, "half", "interleaved"):
        raise ValueError(f'layout {layout!r} is unknown; use "half", "interleaved" or None')
    target = _find(model, at)
    installed = _Installed()
    kind = _kind_of(target) if at else "attention"
    if kind == "table" and at:  # it makes cos and sin for the attention modules beside it
        at, kind = at.rpartition(".")[0], "attention"
        target = model.get_submodule(at)
    if kind == "attention":
        for name, attention in _self_attentions(target):
            _check_free(attention, name)
            head_dim = attention.head_dim
            made = _make(rotary, attention.q_proj.out_features, head_dim, name, installed.rotaries)
            takes_tables = "position_embeddings" in _parameter_names(attention)
            hooks = _AttentionHooks(made, (layout or ("half" if takes_tables else "interleaved")) == "half")
            installed.handles += hooks.attach(attention)
    elif kind == "qk":
        assert at is not None
        parent, _, name = at.rpartition(".")
        made = _make(rotary, None, None, at, installed.rotaries)
        installed.replaced = (parent, name, [target])  # in a list: the original must not become a submodule
        setattr(model.get_submodule(parent), name, _Turned(made, target, layout == "half", head_axis))
    else:
        assert at is not None
        _check_free(target, at)
        made = _make(rotary, getattr(target, "embedding_dim", None), None, at, installed.rotaries)
        hooks = _EmbeddingHooks(made)
        installed.handles += hooks.attach(target, model.get_submodule(at.rpartition(".")[0]))
    if not len(installed.rotaries):
        raise ValueError(
            f"{type(target).__name__} holds no self-attention with q_proj and k_proj; name with at= an embedding, or a "
            f"module that takes queries, keys and positions"
        )
    name = "cubelet_rotary"
    while name in model._modules:
        name += "_"
    model.add_module(name, installed)
    return installed.rotaries


def uninstall(model: nn.Module) -> None:
    """Take out all that `install` put into this model.

    Raises:
        ValueError: nothing is installed.
    """
    found = [(name, module) for name, module in model.named_children() if isinstance(module, _Installed)]
    if not found:
        raise ValueError(f"no rotary is installed in this {type(model).__name__}")
    for name, installed in reversed(found):
        for handle in installed.handles:
            handle.remove()
        if installed.replaced is not None:
            parent, place, (original,) = installed.replaced
            setattr(model.get_submodule(parent), place, original)
        delattr(model, name)


class _Installed(nn.Module):
    """The rotaries of one installation, and how to undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.rotaries = nn.ModuleList()
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.replaced: tuple[str, str, list[nn.Module]] | None = None

    def forward(self, x: Any) -> Any:
        """The identity: an `nn.Sequential` calls every child, this one too."""
        return x


# -- finding places --


def _find(model: nn.Module, at: str | None) -> nn.Module:
    names = dict(model.named_modules())
    if not at:
        return model
    if at not in names:
        close = difflib.get_close_matches(at, names, n=3, cutoff=0.4)
        raise ValueError(
            f"{type(model).__name__} has no submodule {at!r}" + (f"; did you mean {close}?" if close else "")
        )
    return names[at]


def _parameter_names(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _kind_of(target: nn.Module) -> str:
    names = set(_parameter_names(target))
    if "inv_freq" in dict(target.named_buffers()):
        return "table"
    if not names.isdisjoint(KEY_NAMES) and not names.isdisjoint(QUERY_NAMES):
        return "qk"
    if not names.isdisjoint(POSITION_NAMES) and not names.isdisjoint(QUERY_NAMES):
        return "qk"
    return "attention" if any(_self_attentions(target)) else "embedding"


def _self_attentions(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        own = name.rpartition(".")[2]
        crosses = "cross" in own or own == "encoder_attn"
        if not crosses and all(hasattr(part, wanted) for wanted in ("q_proj", "k_proj", "head_dim")):
            yield name, part


def _check_free(module: nn.Module, name: str) -> None:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if isinstance(getattr(hook, "__self__", None), _AttentionHooks | _EmbeddingHooks):
            raise ValueError(f"{name} has a rotary already; uninstall it first")


def _make(rotary: Any, dims: int | None, head_dim: int | None, name: str, made: nn.ModuleList) -> Rotary:
    if isinstance(rotary, Rotary):
        module = rotary
    elif dims is None:
        raise ValueError(f"the width at {name} is unknown; give a rotary, not a class")
    else:
        module = rotary(dims, dims // head_dim if head_dim else 1)
    if head_dim is not None and module.head_dim != head_dim:
        raise ValueError(f"the rotary's head_dim {module.head_dim} is not the head_dim {head_dim} of {name}")
    if head_dim is None and dims is not None and module.dims != dims:
        raise ValueError(f"the rotary's dims {module.dims} are not the width {dims} of {name}")
    if module not in list(made):
        made.append(module)
    return module


# -- turning --


def _positions_of(arguments: dict[str, Any], length: int, device: torch.device, layer: int | None) -> Tensor | None:
    """(s,) or (b, s) from the arguments of a call in the style of Hugging Face, or None for 0…s−1."""
    given = next((arguments[name] for name in POSITION_NAMES if arguments.get(name) is not None), None)
    if given is not None:
        return given[0] if given.ndim == 2 and given.shape[0] == 1 else given
    past = arguments.get("past_key_values")
    if past is None or not hasattr(past, "get_seq_length"):
        return None
    seen = past.get_seq_length() if layer is None else past.get_seq_length(layer)
    return torch.arange(length, device=device) + seen


def _turn(turn: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, positions: Tensor | None, half: bool) -> Tensor:
    """turn(x) for x (b, h, s, c) whose pairs are (m, m + c/2) where `half`."""
    if not half:
        return turn(x, positions)
    pairs = x.unflatten(-1, (2, -1)).mT.flatten(-2)
    return turn(pairs, positions).unflatten(-1, (-1, 2)).mT.flatten(-2)


class _AttentionHooks:
    """What is done to one self-attention module. Positions live here from the module's call to its projections'."""

    def __init__(self, rotary: Rotary, half: bool) -> None:
        self.rotary, self.half = rotary, half
        self.names: list[str] = []
        self.positions: Tensor | None = None
        self.skip = False

    def attach(self, attention: Any) -> list[Any]:
        self.names = _parameter_names(attention)
        after_query, after_key = ("q_norm", "k_norm") if hasattr(attention, "q_norm") else ("q_proj", "k_proj")
        return [
            attention.register_forward_pre_hook(self.before, with_kwargs=True),
            getattr(attention, after_query).register_forward_hook(self.query),
            getattr(attention, after_key).register_forward_hook(self.key),
        ]

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        self.skip = arguments.get("key_value_states") is not None  # cross-attention never turns
        x = arguments["hidden_states"]
        self.positions = _positions_of(arguments, x.shape[1], x.device, getattr(module, "layer_idx", None))
        tables = arguments.get("position_embeddings")
        if tables is None or self.skip:
            return args, kwargs
        neutral = (torch.ones_like(tables[0]), torch.zeros_like(tables[1]))
        if "position_embeddings" in kwargs:
            return args, {**kwargs, "position_embeddings": neutral}
        return tuple(neutral if argument is tables else argument for argument in args), kwargs

    def query(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self._turn(self.rotary.rotate, output)

    def key(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self._turn(self.rotary.rotate_keys, output)

    def _turn(self, turn: Callable[[Tensor, Tensor | None], Tensor], output: Tensor) -> Tensor:
        if self.skip:
            return output
        c = self.rotary.head_dim
        heads = output if output.ndim == 4 else output.unflatten(-1, (-1, c))
        return _turn(turn, heads.transpose(1, 2), self.positions, self.half).transpose(1, 2).reshape(output.shape)


class _EmbeddingHooks:
    """Turns what an embedding puts out; positions come from the call of the module around it."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary = rotary
        self.arguments: dict[str, Any] = {}

    def attach(self, embedding: nn.Module, parent: nn.Module) -> list[Any]:
        return [
            parent.register_forward_pre_hook(self.before, with_kwargs=True),
            parent.register_forward_hook(self.after, always_call=True),
            embedding.register_forward_hook(self.turn),
        ]

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.arguments = kwargs

    def after(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.arguments = {}  # hold no cache longer than the call

    def turn(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.rotary(output, _positions_of(self.arguments, output.shape[1], output.device, None))


class _Turned(nn.Module):
    """Stands in for a module that turns queries and keys (or one tensor), with the same signature."""

    def __init__(self, rotary: Rotary, original: nn.Module, half: bool, head_axis: int) -> None:
        super().__init__()
        if head_axis not in (1, 2):
            raise ValueError(f"head_axis {head_axis} must be 1 for (b, h, s, c) or 2 for (b, s, h, c)")
        self.rotary = [rotary]  # in a list: registered once, on the model
        self.halves, self.head_axis = half, head_axis
        self.names = _parameter_names(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        (rotary,) = self.rotary
        query = next(arguments[name] for name in QUERY_NAMES if name in arguments)
        key = next((arguments[name] for name in KEY_NAMES if name in arguments), None)
        positions = _positions_of(arguments, query.shape[3 - self.head_axis], query.device, None)
        turned = self._turn(rotary.rotate, query, positions)
        return turned if key is None else (turned, self._turn(rotary.rotate_keys, key, positions))

    def _turn(self, turn: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, positions: Tensor | None) -> Tensor:
        if self.head_axis == 1:
            return _turn(turn, x, positions, self.halves)
        return _turn(turn, x.transpose(1, 2), positions, self.halves).transpose(1, 2)
