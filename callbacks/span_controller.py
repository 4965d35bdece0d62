"""Attention spans that follow the training loss, by the same controller as the rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .loss_controller import LossController, Target
from .module_search import modules_with, to_float


class _Span:
    """A span scale; one value per head is scaled as a whole, read as its mean."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def read(self) -> float:
        return to_float(self._module.span)

    def write(self, value: float) -> None:
        self._module.set_span(value)


class SpanController(LossController):
    """Moves the span scale of every module that has `span` and `set_span`; a worse loss widens it. Logs `span`.

    Args:
        factor: what the span is multiplied or divided by, > 1.
        min_span, max_span: bounds of the scale, at most 1.
        better: +1 where a better loss widens, −1 where it narrows.
        options: of `LossController`.

    Example:
        >>> callback = SpanController(mode="best", min_span=0.1)
    """

    quantity = "span"
    nothing = "no module has `span` and `set_span`"

    def __init__(
        self,
        *,
        factor: float = 1.02,
        min_span: float = 0.05,
        max_span: float = 1.0,
        better: Literal[1, -1] = -1,
        **options: Any,
    ) -> None:
        if max_span > 1:
            raise ValueError(f"max_span {max_span} is above 1, the whole span")
        super().__init__(factor=factor, minimum=min_span, maximum=max_span, better=better, **options)

    def find(self, module: Any) -> Mapping[str, Target]:
        return {name: _Span(attention) for name, attention in modules_with(module, "span", "set_span").items()}
