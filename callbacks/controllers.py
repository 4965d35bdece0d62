"""Attention windows and spans that follow the training loss, by the same controller as the rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .loss_callback import Average
from .loss_follower import Mode
from .loss_following import LossFollowing, Target
from .offers import number, offering


class _Window:
    """An int window, kept as a float so that small factors add up; written only when its rounded value changes."""

    def __init__(self, module: Any, multiple_of: int) -> None:
        self._module = module
        self._multiple = multiple_of
        self._value = float(module.window)

    def read(self) -> float:
        if self._rounded(self._value) != int(self._module.window):
            self._value = float(self._module.window)
        return self._value

    def write(self, value: float) -> None:
        self._value = value
        if self._rounded(value) != int(self._module.window):
            self._module.set_window(self._rounded(value))

    def _rounded(self, value: float) -> int:
        return max(round(value / self._multiple), 1) * self._multiple


class _Span:
    """A span scale; one value per head is scaled as a whole, read as its mean."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def read(self) -> float:
        return number(self._module.span)

    def write(self, value: float) -> None:
        self._module.set_span(value)


class WindowController(LossFollowing):
    """Moves the local window of every module that offers `window` and `set_window`.

    A worse loss widens the window and a better one narrows it (`better=-1`): context is paid for only while it helps.
    Windows are whole multiples of `multiple_of`, because each new size is a new shape to a compiled model. Logs
    `window`, before rounding.

    Args:
        min_window, max_window: bounds, in tokens.
        multiple_of: windows are rounded to multiples of this many tokens.
        others: as for `DynamicBase`.
    """

    quantity = "window"
    nothing = "no module offers `window` and `set_window`"

    def __init__(
        self,
        *,
        mode: Mode = "ema",
        every_n_steps: int = 25,
        factor: float = 1.05,
        min_window: int = 16,
        max_window: int = 4096,
        multiple_of: int = 16,
        warmup_steps: int = 0,
        dead_zone: float = 0.005,
        decay: float = 0.9,
        average: Average = "step",
        better: Literal[1, -1] = -1,
        strict: bool = False,
    ) -> None:
        super().__init__(
            mode=mode, every_n_steps=every_n_steps, factor=factor, minimum=min_window, maximum=max_window,
            warmup_steps=warmup_steps, dead_zone=dead_zone, decay=decay, average=average, better=better, strict=strict,
        )  # fmt: skip
        if multiple_of < 1:
            raise ValueError(f"multiple_of {multiple_of} must be at least 1")
        self.multiple_of = multiple_of

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"multiple_of": self.multiple_of}

    def find(self, module: Any) -> Mapping[str, Target]:
        return {
            name: _Window(found, self.multiple_of)
            for name, found in offering(module, "window", "set_window").items()
            if found.window is not None
        }


class SpanController(LossFollowing):
    """Moves the span scale of every module that offers `span` and `set_span`; a worse loss widens it. Logs `span`.

    Args:
        min_span, max_span: bounds of the scale, at most 1.
        others: as for `DynamicBase`.
    """

    quantity = "span"
    nothing = "no module offers `span` and `set_span`"

    def __init__(
        self,
        *,
        mode: Mode = "ema",
        every_n_steps: int = 25,
        factor: float = 1.02,
        min_span: float = 0.05,
        max_span: float = 1.0,
        warmup_steps: int = 0,
        dead_zone: float = 0.005,
        decay: float = 0.9,
        average: Average = "step",
        better: Literal[1, -1] = -1,
        strict: bool = False,
    ) -> None:
        if max_span > 1:
            raise ValueError(f"max_span {max_span} is above 1, the whole span")
        super().__init__(
            mode=mode, every_n_steps=every_n_steps, factor=factor, minimum=min_span, maximum=max_span,
            warmup_steps=warmup_steps, dead_zone=dead_zone, decay=decay, average=average, better=better, strict=strict,
        )  # fmt: skip

    def find(self, module: Any) -> Mapping[str, Target]:
        return {name: _Span(found) for name, found in offering(module, "span", "set_span").items()}
