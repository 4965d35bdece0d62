"""Base of this package's callbacks: a state key computed once, and state that ends with its run."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Callback


class StatefulCallback(Callback):
    """A callback whose checkpoint key names its arguments, and which starts anew with every run.

    An instance may be used for several fits (cross-validation, a notebook). A fit that begins at global step 0 and
    loads no checkpoint starts from the state of the first one; a second fit on the same trainer goes on.

    Subclasses keep in `state_dict` all that must outlive a fit, and nothing else does; those that override `setup` call
    `super().setup`.

    Example:
        >>> class Counter(StatefulCallback):
        ...     batches = 0
        ...     def on_train_batch_end(self, *_):
        ...         self.batches += 1
        ...     def state_dict(self):
        ...         return {"batches": self.batches}
        ...     def load_state_dict(self, state_dict):
        ...         self.batches = state_dict["batches"]
        >>> Counter().state_key
        'Counter{}'
    """

    # Class name in the state keys of checkpoints; a class that was renamed keeps its first one here.
    state_name: str | None = None
    _key: str | None = None
    _initial_state: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        if self._key is None:  # the trainer asks for it around every hook of every step
            self._key = f"{self.state_name or type(self).__qualname__}{self.identity()!r}"
        return self._key

    def identity(self) -> dict[str, Any]:
        """Return the arguments that tell two instances apart; a state is loaded only where they are the same."""
        return {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # A checkpoint's state is loaded after this hook.
        if stage != "fit" or trainer.global_step:
            return
        if self._initial_state is None:
            self._initial_state = copy.deepcopy(self.state_dict())
        else:
            self.load_state_dict(copy.deepcopy(self._initial_state))
