"""Reward for attentions that choose their own span by Q-learning (`refine`), between optimizer steps."""

from __future__ import annotations

from typing import Any

from .loss_callback import Average, LossCallback
from .module_search import modules_with
from .reporting import idle, label, log_scalars


class SpanQLearning(LossCallback):
    """Shows the training loss to every module that has `refine(loss) -> span`, and logs the spans in force.

    The mean loss over ranks is the same number everywhere, so replicas choose alike. What was learnt lies in the
    modules' buffers and is saved with the weights; a forward only reads the span. Attach no `SpanController` beside it
    for the same modules: both would write the span.

    Args:
        every_n_steps: optimizer steps between two choices; an action needs some steps to show in the loss.
        average: "interval" (default) judges an action by all steps since it, "step" by the last one only.
        strict: raise instead of staying idle when no module has `refine`.

    Raises:
        ValueError: a bad argument; at fit start, with `strict` and no such module.

    Example:
        >>> callback = SpanQLearning(every_n_steps=50)
    """

    state_name = "SpanRefinement"  # its name in 0.1.0

    def __init__(self, *, every_n_steps: int = 25, average: Average = "interval", strict: bool = False) -> None:
        super().__init__(every_n_steps=every_n_steps, average=average, strict=strict)
        self._modules: dict[str, Any] = {}
        self._label = "refined_span"

    def identity(self) -> dict[str, Any]:
        return {"every_n_steps": self.every_n_steps, "average": self.average}

    def acts(self) -> bool:
        return bool(self._modules)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self._label = label(trainer, self, "refined_span")
        self._modules = {name: m for name, m in modules_with(pl_module, "refine").items() if callable(m.refine)}
        if not self._modules:
            idle(self, "no module has `refine(loss)`", self.strict)

    def on_loss(self, trainer: Any, module: Any, loss: float | None) -> None:
        if loss is None:
            return
        spans = {name: float(attention.refine(loss)) for name, attention in self._modules.items()}
        log_scalars(trainer, {f"{self._label}/{name or 'model'}": span for name, span in spans.items()})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._modules = {}


SpanRefinement = SpanQLearning
