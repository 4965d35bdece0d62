"""The base of this package's callbacks: a state key made once."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback


class KeyedCallback(Callback):
    """A callback whose checkpoint key names the arguments that tell two instances apart.

    The trainer asks for the key around every hook of every step, so it is made once and kept.
    """

    _key: str | None = None

    @property
    def state_key(self) -> str:
        if self._key is None:
            self._key = self._generate_state_key(**self.identity())
        return self._key

    def identity(self) -> dict[str, Any]:
        """Arguments that tell two instances apart; a state is loaded only where they are the same."""
        return {}
