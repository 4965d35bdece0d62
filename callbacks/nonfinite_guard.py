"""A guard that stops, or skips, when a loss is not finite, before it spoils the weights or a checkpoint.

Where looking is free (CPU, one process) every loss is looked at before its backward, so the weights are still those
of the step before. On an accelerator, or with several ranks, looking means a synchronisation; there a note on the
device keeps the first bad step and is read every `every_n_steps`. Before every checkpoint both the note and the
weights are looked at, so a checkpoint of spoiled weights is never written.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cubelet.common.checks import check_at_least, check_choice
from cubelet.common.errors import UserError
from cubelet.common.sharded_tensors import to_full, to_local

from .base import StatefulCallback
from .module_search import clean_name
from .reporting import due, label, log_scalars

Action = Literal["stop", "skip"]
_NEVER = 2**31 - 1


class NonFiniteLoss(UserError, RuntimeError):
    """A training loss was NaN or infinite."""


class NonFiniteGuard(StatefulCallback):
    """Reacts to a training loss that is NaN or infinite, alike on all ranks.

    Args:
        action: "stop" raises `NonFiniteLoss` with one message: step, last good checkpoint, parameter with the largest
            gradient. "skip" drops the gradients of such steps, counts them (`skipped_steps`), and stops after
            `max_skips` in a row; it must know before each optimizer step, which costs accelerators a synchronisation
            and several ranks a reduction per step.
        every_n_steps: optimizer steps between two looks; default 1 on one CPU process and 50 elsewhere.
        measure_every: optimizer steps between two notes of the gradients' norms, from which the message names the
            largest gradient when those of the bad step are all spoiled.
        max_skips: see above.

    Raises:
        ValueError: a bad argument.
        NonFiniteLoss: during the fit, see above.

    Example:
        >>> callback = NonFiniteGuard(action="skip", max_skips=3)
    """

    def __init__(
        self,
        *,
        action: Action = "stop",
        every_n_steps: int | None = None,
        measure_every: int = 50,
        max_skips: int = 10,
    ) -> None:
        super().__init__()
        check_choice("action", action, Action)
        check_at_least("every_n_steps", 1 if every_n_steps is None else every_n_steps, 1)
        if action == "skip" and every_n_steps not in (None, 1):
            raise ValueError(f"action='skip' must look at every step, so every_n_steps={every_n_steps} cannot be")
        check_at_least("measure_every", measure_every, 1)
        check_at_least("max_skips", max_skips, 1)
        self.action: Action = action
        self.every_n_steps = every_n_steps
        self.measure_every = measure_every
        self.max_skips = max_skips
        self.skipped = 0
        self._in_a_row = 0
        self._interval = 1
        self._shared = False
        self._first: Tensor | None = None
        self._host_first = _NEVER
        self._value = math.nan
        self._looked = 0
        self._measured = -1
        self._norms: tuple[list[str], list[Tensor]] = ([], [])
        self._label = "skipped_steps"

    def identity(self) -> dict[str, Any]:
        return {"action": self.action}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._label = label(trainer, self, "skipped_steps")
        self._shared = trainer.world_size > 1
        on_host = pl_module.device.type == "cpu"
        default = 1 if self.action == "skip" or (on_host and not self._shared) else 50
        self._interval = self.every_n_steps or default
        self._first = None if on_host else torch.full((), _NEVER, dtype=torch.int32, device=pl_module.device)
        self._host_first = _NEVER

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._looked = trainer.global_step
        self._measured = -1

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self._first is None:
            value = float(loss.detach())
            if not math.isfinite(value) and self._host_first == _NEVER:
                self._host_first, self._value = trainer.global_step, value
        else:
            now = torch.where(loss.detach().isfinite(), _NEVER, trainer.global_step)
            torch.minimum(self._first, now.to(self._first.dtype), out=self._first)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step = trainer.global_step
        if due(self._looked, step + 1, self._interval):
            self._looked = step + 1
            bad = self._first_bad(trainer, pl_module)
            if bad is not None:
                self._react(trainer, pl_module, optimizer, bad)
                return
            self._in_a_row = 0
        if self._measured < 0 or step - self._measured >= self.measure_every:
            self._measured = step
            self._norms = gradient_norms(pl_module)

    def _react(self, trainer: Any, module: nn.Module, optimizer: Any, bad: int) -> None:
        if self.action == "stop" or self._in_a_row >= self.max_skips:
            raise NonFiniteLoss(self._message(trainer, module, bad))
        self.skipped += 1
        self._in_a_row += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        log_scalars(trainer, {self._label: float(self.skipped)})
        self._host_first = _NEVER
        if self._first is not None:
            self._first.fill_(_NEVER)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Every rank comes here, so the reductions inside are safe. A finite loss may have had gradients that were not.
        if trainer.state.fn != "fit":
            return
        bad = self._first_bad(trainer, pl_module) if self.action == "stop" else None
        if bad is not None or self._spoiled(trainer, pl_module):
            raise NonFiniteLoss(self._message(trainer, pl_module, bad))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        bad = self._first_bad(trainer, pl_module) if self.action == "stop" else None
        if bad is not None:
            raise NonFiniteLoss(self._message(trainer, pl_module, bad))

    def _spoiled(self, trainer: Any, module: Any) -> bool:
        """Whether any parameter on any rank is not finite. Collective."""
        norms = torch._foreach_norm([to_local(p.detach()) for p in module.parameters()])
        count = torch.stack([~norm.isfinite() for norm in norms]).sum() if norms else torch.zeros(())
        return bool(trainer.strategy.reduce(count.to(module.device), reduce_op="sum"))

    def _first_bad(self, trainer: Any, module: Any) -> int | None:
        """First step with a bad loss on any rank since the last look; None where there was none."""
        first = self._first
        if self._shared:
            first = torch.tensor(self._host_first, device=module.device) if first is None else first.clone()
            first = trainer.strategy.reduce(first, reduce_op="min")
        found = self._host_first if first is None else int(first)
        return None if found == _NEVER else found

    def _message(self, trainer: Any, module: nn.Module, bad: int | None) -> str:
        """One message. Collective, like everything that leads here."""
        if bad is None:
            what = f"After optimizer step {trainer.global_step} the weights are not finite, though every loss was."
        else:
            # With several ranks the same message everywhere, also on those whose own loss was fine.
            known = self._first is None and self._host_first == bad and not self._shared
            value = str(self._value) if known else "not finite"
            row = f", after {self._in_a_row} skipped in a row" if self._in_a_row else ""
            state = "are spoiled" if self._spoiled(trainer, module) else "are still finite"
            now = f"after step {trainer.global_step} weights {state}"
            what = f"The loss of optimizer step {bad + 1} is {value}{row}; {now}."
        good = last_checkpoint(trainer) or "none was written yet"
        fix = "Lower the learning rate, clip gradients, or skip such steps with NonFiniteGuard(action='skip')."
        return f"{what} Last good checkpoint: {good}. {self._gradient(module)} {fix}"

    def _gradient(self, module: nn.Module) -> str:
        names, norms = gradient_norms(module)
        values = torch.stack(norms).tolist() if norms else []
        finite = [(value, name) for name, value in zip(names, values, strict=True) if math.isfinite(value)]
        broken = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        when = ""
        if not finite and self._norms[0]:
            names, norms = self._norms
            finite = list(zip(torch.stack(norms).tolist(), names, strict=True))
            when = f" (at step {self._measured + 1}, before all of them broke)"
        text = "Largest gradient: unknown." if not finite else ""
        if finite:
            value, name = max(finite)
            text = f"Largest gradient: {name}, norm {value:.3g}{when}."
        return f"{text} Not finite: {len(broken)} of {len(values)} gradients, first {broken[0]}." if broken else text

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._norms = ([], [])

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
        self._in_a_row = state_dict["in_a_row"]


@torch.no_grad()
def gradient_norms(module: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Return names and 2-norms (0-dim, on the device, float32) of the gradients that are there."""
    named = [(clean_name(name), p.grad) for name, p in module.named_parameters() if p.grad is not None]
    norms = torch._foreach_norm([grad for _, grad in named]) if named else []
    return [name for name, _ in named], [to_full(norm).float() for norm in norms]


def last_checkpoint(trainer: Any) -> str:
    """Return the path of the newest checkpoint that exists, "" where there is none."""
    paths = {
        path
        for callback in trainer.checkpoint_callbacks
        for path in (getattr(callback, "last_model_path", ""), getattr(callback, "best_model_path", ""))
        if path and Path(path).exists()
    }
    return max(paths, key=lambda path: Path(path).stat().st_mtime, default="")
