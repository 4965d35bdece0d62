"""What is hooked onto a model: tables for its attentions, R behind its projections, rotation where it has none.

A hook finds the child it works on anew at each call: a projection that was replaced since (LoRA, quantisation) is taken
over, so that no output goes unrotated.
"""

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.kept import records_graph
from ..base import Rotary
from ..rotation_matrix import right_multiply
from .tables import TableCall, TableForm, call_of

POSITION_NAMES = ("position_ids", "positions", "input_pos", "offsets")
QUERY_NAMES = ("q", "query", "queries", "query_states", "x", "t")
KEY_NAMES = ("k", "key", "keys", "key_states")


def parameter_names(module: nn.Module) -> list[str]:
    """Names of what a module's forward takes, in order; accelerate's wrapper around it is looked through."""
    return list(inspect.signature(module.forward).parameters)


def bind(names: Sequence[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def given_positions(arguments: dict[str, Any], length: int, device: torch.device, layer: int | None) -> Tensor | None:
    """(s,) or (b, s) from the arguments of a call in the style of Hugging Face, or None for 0…s−1."""
    given = next((arguments[name] for name in POSITION_NAMES if arguments.get(name) is not None), None)
    if given is not None:
        return given[0] if given.ndim == 2 and given.shape[0] == 1 else given
    past = arguments.get("past_key_values")
    if past is None or not hasattr(past, "get_seq_length"):
        return None
    seen = past.get_seq_length() if layer is None else past.get_seq_length(layer)
    return torch.arange(length, device=device) + seen


def rotate_layout(
    rotate: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, positions: Tensor | None, half: bool
) -> Tensor:
    """rotate(x) for x (b, h, s, c) whose pairs are (m, m + c/2) where `half`."""
    if not half:
        return rotate(x, positions)
    pairs = x.unflatten(-1, (2, -1)).mT.flatten(-2)  # (b, h, s, c), interleaved
    return rotate(pairs, positions).unflatten(-1, (-1, 2)).mT.flatten(-2)


class AttentionHook:
    """Base of the hooks on an attention: refuses keys of another base, and follows children that are replaced."""

    def __init__(self, attention: nn.Module, rotary: Rotary, children: Sequence[str]) -> None:
        self.rotary, self.names, self.children = rotary, parameter_names(attention), tuple(children)
        self.layer: int | None = getattr(attention, "layer_idx", None)
        self.hooked: dict[str, weakref.ref] = {}
        self.handles: dict[str, Any] = {"": attention.register_forward_pre_hook(self.before, with_kwargs=True)}
        self.follow(attention)

    def follow(self, attention: nn.Module) -> None:
        """Hook the children that are there now."""
        for name in self.children:
            child = getattr(attention, name)
            if name in self.hooked and self.hooked[name]() is child:
                continue
            if name in self.handles:
                self.handles[name].remove()
            self.handles[name] = child.register_forward_hook(self.query if name.startswith("q") else self.key)
            self.hooked[name] = weakref.ref(child)

    def remove(self) -> None:
        """Take everything off."""
        for handle in self.handles.values():
            handle.remove()

    def check_cache(self, arguments: dict[str, Any]) -> None:
        """Refuse to go on from keys that were rotated with another base."""
        past = arguments.get("past_key_values")
        if past is None or not hasattr(past, "get_seq_length"):
            return
        versions = past.__dict__.setdefault("_cubelet_versions", {})
        version, seen = self.rotary.base_version, past.get_seq_length(*([] if self.layer is None else [self.layer]))
        if seen and versions.get(self.layer, version) != version:
            raise RuntimeError(
                f"the rotary base changed (version {versions[self.layer]} → {version}) while {int(seen)} keys rotated "
                "with the old base are cached: start a new cache and read the prompt again"
            )
        versions[self.layer] = version

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before the attention's forward."""
        raise NotImplementedError

    def query(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Behind what puts out queries."""
        raise NotImplementedError

    def key(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Behind what puts out keys."""
        raise NotImplementedError


class TableHook(AttentionHook):
    """Hands an attention (cos, sin) of our rotary in place of the model's, and multiplies R behind its projections.

    Args:
        form: how the model writes its tables.
        pairs: "half" or "interleaved", how its attention pairs features, and the width of its heads; None without R.
    """

    def __init__(
        self,
        attention: nn.Module,
        rotary: Rotary,
        form: TableForm,
        *,
        children: Sequence[str] = (),
        pairs: tuple[str, int] | None = None,
    ) -> None:
        self.form, self.pairs = form, pairs
        super().__init__(attention, rotary, children)

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.follow(module)
        arguments = bind(self.names, args, kwargs)
        self.check_cache(arguments)
        own = arguments.get("position_embeddings")
        if own is None:
            return args, kwargs
        call = call_of(own)
        if call is None:
            raise RuntimeError(
                "the tables of this attention were made by a module that was not there when the rotary was installed: "
                "uninstall(model) and install again"
            )
        tables = self.tables(call, own)
        if "position_embeddings" in kwargs:
            return args, {**kwargs, "position_embeddings": tables}
        return tuple(tables if argument is own else argument for argument in args), kwargs

    def tables(self, call: TableCall, own: Any) -> Any:
        """Ours for the positions of this call, made once a call; a reentrant checkpoint asks with and without graph."""
        key = (id(self.rotary), self.form, records_graph())
        if key not in call.made:
            call.made[key] = self.form.write(self.rotary, call.positions, own)
        return call.made[key]

    def matrix(self) -> Tensor | None:
        """R (head, head) in the order of the model's features, the identity on those that do not rotate."""
        R = self.rotary.mixing()
        if R is None or self.pairs is None:
            return None
        layout, width = self.pairs
        if layout == "half":
            order = torch.arange(len(R), device=R.device).view(2, -1).T.flatten()  # the model's, at each of ours
            back = order.argsort()
            R = R[back][:, back]
        return R if width == len(R) else torch.block_diag(R, torch.eye(width - len(R), device=R.device, dtype=R.dtype))

    def query(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        R = self.matrix()
        if R is None:
            return output
        heads = output.unflatten(-1, (-1, len(R)))  # (b, s, h, c), or (b, h, s, 1, c) behind a norm of heads
        return right_multiply(heads, R).reshape(output.shape)

    key = query


class ProjectionHook(AttentionHook):
    """Rotates what q_proj and k_proj put out, in an attention that has no positions of its own."""

    def __init__(self, attention: nn.Module, rotary: Rotary, half: bool, fixed: Tensor | None = None) -> None:
        self.half, self.skip, self.fixed = half, False, fixed
        self.positions: Tensor | None = None
        super().__init__(attention, rotary, ("q_proj", "k_proj"))

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.follow(module)
        arguments = bind(self.names, args, kwargs)
        self.skip = arguments.get("key_value_states") is not None  # cross-attention is not rotated
        if not self.skip:
            self.check_cache(arguments)
            x = arguments["hidden_states"]
            if self.fixed is None:
                self.positions = given_positions(arguments, x.shape[1], x.device, self.layer)
            else:
                self.positions = self.fixed.to(x.device)
        return args, kwargs

    def query(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.rotate(self.rotary.rotate, output)

    def key(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.rotate(self.rotary.rotate_keys, output)

    def rotate(self, rotate: Callable[[Tensor, Tensor | None], Tensor], output: Tensor) -> Tensor:
        if self.skip:
            return output
        heads = output.unflatten(-1, (-1, self.rotary.head_dim)).transpose(1, 2)  # (b, h, s, c)
        return rotate_layout(rotate, heads, self.positions, self.half).transpose(1, 2).reshape(output.shape)


class EmbeddingHook:
    """Rotates what an embedding puts out; positions come from the call of the module around it."""

    def __init__(self, embedding: nn.Module, parent: nn.Module, rotary: Rotary) -> None:
        self.rotary = rotary
        self.arguments: dict[str, Any] = {}
        self.handles = [
            parent.register_forward_pre_hook(self.before, with_kwargs=True),
            parent.register_forward_hook(self.after, always_call=True),
            embedding.register_forward_hook(self.rotate),
        ]

    def remove(self) -> None:
        """Take everything off."""
        for handle in self.handles:
            handle.remove()

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.arguments = kwargs

    def after(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.arguments = {}  # hold no cache longer than the call

    def rotate(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.rotary(output, given_positions(self.arguments, output.shape[1], output.device, None))


class HandleHook:
    """A bare hook that can be removed like the others."""

    def __init__(self, handle: Any) -> None:
        self.remove = handle.remove


class _RotaryWrapper(nn.Module):
    """Stands in for a module that rotates queries and keys (or one tensor), with the same signature."""

    def __init__(self, rotary: Rotary, original: nn.Module, half: bool, head_axis: int) -> None:
        super().__init__()
        if head_axis not in (1, 2):
            raise ValueError(f"head_axis {head_axis} must be 1 for (b, h, s, c) or 2 for (b, s, h, c)")
        self.rotary = [rotary]  # in a list: registered once, on the model
        self.halves, self.head_axis = half, head_axis
        self.names = parameter_names(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = bind(self.names, args, kwargs)
        (rotary,) = self.rotary
        query = next(arguments[name] for name in QUERY_NAMES if name in arguments)
        key = next((arguments[name] for name in KEY_NAMES if name in arguments), None)
        positions = given_positions(arguments, query.shape[3 - self.head_axis], query.device, None)
        rotated = self._rotate(rotary.rotate, query, positions)
        return rotated if key is None else (rotated, self._rotate(rotary.rotate_keys, key, positions))

    def _rotate(self, rotate: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, positions: Tensor | None) -> Tensor:
        if self.head_axis == 1:
            return rotate_layout(rotate, x, positions, self.halves)
        return rotate_layout(rotate, x.transpose(1, 2), positions, self.halves).transpose(1, 2)
