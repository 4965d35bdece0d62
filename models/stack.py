"""What `Encoder` and `Decoder` share: sizes that fit, a block for each layer, costs and penalties added up."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cubelet.common.checks import check_at_least

Make = Callable[..., nn.Module]


def check_sizes(*, dims: int, heads: int, **sizes: int) -> None:
    """Raise ValueError where a size is below 1, or dims cannot be shared out among the heads."""
    for name, value in (*sizes.items(), ("dims", dims), ("heads", heads)):
        check_at_least(name, value, 1)
    if dims % heads:
        raise ValueError(f"dims {dims} is not divisible by heads {heads}; choose heads from the divisors of dims")


def rotary_of_layer(index: int, rotary: Make | None) -> Make | None:
    """The rotary of one layer; a callable that takes `layer` is told the index, from 0."""
    if rotary is None or "layer" not in inspect.signature(rotary).parameters:
        return rotary
    return partial(rotary, layer=index)


def repeat(name: str, given: Any, layers: int) -> list[Any]:
    """One entry per layer: of a sequence, over and over; ValueError where that does not come out even.

    A list of one for several layers is refused, too: it is rather a list that was not finished.

    Example:
        >>> repeat("rotaries", ["RoPE", None], 4)
        ['RoPE', None, 'RoPE', None]
    """
    if not isinstance(given, Sequence):
        return [given] * layers
    pattern = list(given)
    if len(pattern) != layers and (len(pattern) < 2 or layers % len(pattern)):
        raise ValueError(
            f"{len(pattern)} {name} were given for {layers} layers; give one, one per layer, or two and more that are "
            f"repeated a whole number of times"
        )
    return pattern * (layers // len(pattern))


def make_blocks(
    dims: int,
    layers: int,
    heads: int,
    *,
    block: Make | Sequence[Make],
    rotary: Make | Sequence[Make | None] | None,
    **options: Any,
) -> nn.ModuleList:
    """Return the blocks of a stack.

    Args:
        block: (dims, heads, *, rotary, **options) → block; or a sequence, repeated to one per layer.
        rotary: (dims, heads) → rotary, made for each layer, or None; or a sequence of these, repeated likewise.
        options: handed to every block.

    Raises:
        ValueError: a sequence whose length does not divide that of the stack.
    """
    blocks, rotaries = repeat("blocks", block, layers), repeat("rotaries", rotary, layers)
    return nn.ModuleList(
        make(dims, heads, rotary=own, **options)
        for make, own in zip(blocks, (rotary_of_layer(*pair) for pair in enumerate(rotaries)), strict=True)
    )


def add_cost(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Return the sum of two activation-dependent costs, of which either may be absent."""
    if total is None or more is None:
        return more if total is None else total
    return total + more


def sum_penalties(parts: Iterable[nn.Module | None], like: Tensor) -> Tensor:
    """Return the sum of the parts' penalties (0-dim, of the type of `like`); 0 where none has any."""
    total = like.new_zeros(())
    for part in parts:
        if part is not None and hasattr(part, "penalty"):
            total = total + part.penalty()  # pyright: ignore[reportCallIssue]
    return total
