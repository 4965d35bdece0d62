"""Tables of cosines and sines in the form a model of `transformers` makes them, and the calls that ask for them.

A model makes its tables in one module, mostly once a call, and hands them to its attentions as `position_embeddings`.
Here the tables carry along which positions they were made for (`TableCall`), and each attention gets tables of its own
rotary for the same positions. Pair layout, partial rotary, norms between projection and rotation, layers without
positions and the choice of a local or global base stay the model's own business.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Rotary

Tables = tuple[Tensor, Tensor] | Tensor

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda t: torch.cat((t, t), dim=-1),
    "interleaved": lambda t: t.repeat_interleave(2, dim=-1),
    "bare": lambda t: t,
}


@dataclass
class TableCall:
    """One call of the model's table maker: its positions, and the tables that were made for them since.

    Args:
        positions: (s,) or (b, s) integers.
        layer_type: which of the model's tables was asked for, where it has several.
        source: name of the module that made the tables.
    """

    positions: Tensor
    layer_type: str | None
    source: str
    made: dict[Any, Tables] = field(default_factory=dict)


@dataclass(frozen=True)
class TableForm:
    """How a model writes its tables.

    Args:
        layout: "half" (c, c), "interleaved" (c₀, c₀, c₁, c₁, …), "bare" (one column a pair) or "complex".
        pairs: number of pairs that rotate.
    """

    layout: str
    pairs: int

    @staticmethod
    def of(tables: Tables) -> "TableForm":
        """The form of a model's own tables, of which at least two positions are distinct."""
        if isinstance(tables, Tensor):
            return TableForm("complex", tables.shape[-1])
        cos = tables[0]
        n = cos.shape[-1] // 2
        if cos.shape[-1] == 2 * n and torch.equal(cos[..., :n], cos[..., n:]):
            return TableForm("half", n)
        if cos.shape[-1] == 2 * n and torch.equal(cos[..., 0::2], cos[..., 1::2]):
            return TableForm("interleaved", n)
        return TableForm("bare", cos.shape[-1])

    def write(self, rotary: Rotary, positions: Tensor, like: Tables) -> Tables:
        """Tables of `rotary` in this form, in the shape and dtype of the model's own."""
        first = like if isinstance(like, Tensor) else like[0]
        table = rotary.table_at(positions, torch.complex128)  # (…, s, pairs)
        if self.layout == "complex":
            return table.to(first.dtype).reshape(first.shape)
        wide = LAYOUTS[self.layout]
        cos, sin = (wide(part).to(first.dtype).reshape(first.shape) for part in (table.real, table.imag))
        return cos, sin


def call_of(tables: Any) -> TableCall | None:
    """What `mark_tables` wrote on these tables, None where nothing."""
    first = tables[0] if isinstance(tables, tuple | list) and len(tables) else tables
    return getattr(first, "_cubelet_call", None)


def is_table_maker(module: nn.Module) -> bool:
    """Whether a module looks as if it made tables: frequencies among its buffers, or rotary in its name."""
    buffers = [name for name, _ in module.named_buffers(recurse=False)]
    return any(name.endswith("inv_freq") for name in buffers) or "Rotary" in type(module).__name__


def mark_tables(name: str, called: set[str] | None = None) -> Callable[..., None]:
    """A forward hook that writes on the tables a module returns for which positions they were made.

    Args:
        name: of the module; noted in `called` when it returns tables.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        layer_type = kwargs.get("layer_type", args[2] if len(args) > 2 else None)
        first = output[0] if isinstance(output, tuple | list) and len(output) else output
        if called is not None and isinstance(first, Tensor):
            called.add(name)
        if isinstance(first, Tensor) and isinstance(positions, Tensor):
            first._cubelet_call = TableCall(positions, layer_type, name)  # pyright: ignore[reportAttributeAccessIssue]

    return hook
