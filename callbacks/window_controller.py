"""Attention windows that follow the training loss, by the same controller as the rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cubelet.common.checks import check_at_least

from .loss_controller import LossController, Target
from .module_search import modules_with


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


class WindowController(LossController):
    """Moves the local window of every module that has `window` and `set_window`.

    A worse loss widens the window and a better one narrows it (`better=-1`): context is paid for only while it helps.
    Windows are whole multiples of `multiple_of`, because each new size is a new shape to a compiled model. Logs
    `window`, before rounding.

    Args:
        factor: what the window is multiplied or divided by, > 1.
        min_window, max_window: bounds, in tokens.
        multiple_of: windows are rounded to multiples of this many tokens.
        better: +1 where a better loss widens, −1 where it narrows.
        options: of `LossController`.

    Example:
        >>> callback = WindowController(every_n_steps=100, min_window=64, max_window=1024)
    """

    quantity = "window"
    nothing = "no module has `window` and `set_window`"

    def __init__(
        self,
        *,
        factor: float = 1.05,
        min_window: int = 16,
        max_window: int = 4096,
        multiple_of: int = 16,
        better: Literal[1, -1] = -1,
        **options: Any,
    ) -> None:
        super().__init__(factor=factor, minimum=min_window, maximum=max_window, better=better, **options)
        check_at_least("multiple_of", multiple_of, 1)
        self.multiple_of = multiple_of

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"multiple_of": self.multiple_of}

    def find(self, module: Any) -> Mapping[str, Target]:
        found = {n: m for n, m in modules_with(module, "window", "set_window").items() if m.window is not None}
        # An attention that passes its window on to a branch counts once.
        inner = {name for name in found for outer in found if outer and name.startswith(f"{outer}.")}
        return {name: _Window(found[name], self.multiple_of) for name in found if name not in inner}
