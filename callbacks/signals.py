"""Signals that stop a run: noted when they come and acted upon between two optimizer steps, by all ranks.

Lightning's own handlers act inside the signal handler: under several ranks they start a collective there, which hangs
when it falls between two others of the step that it interrupts, and on SLURM they write a checkpoint in the middle of a
step. Their actions are kept, their moment is not. Python's own answer to Ctrl-C, an exception wherever the program
happens to be, loses the steps since the last checkpoint.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer

from cubelet.common.lightning_internals import cluster_environment, end_by_sigterm, requeue

LOOK_SECONDS = 1.0  # between two agreements of the ranks; systems grant 30 s and more
MOST_STEPS = 1000


class Interruption:
    """Watches SIGTERM, SIGINT (Ctrl-C) and, on SLURM with auto-requeue, the requeue signal.

    SIGTERM and SIGINT take the same way; a second SIGINT stops at once, by a KeyboardInterrupt.

    With several ranks the signal may reach one or all of them: about once a second they agree by one small reduction,
    after a number of steps that all of them derive from the slowest rank's pace.
    """

    def __init__(self) -> None:
        self._noted: set[int] = set()
        self._process = 0
        self._usual: Any = None  # what SIGINT did before
        self.by: signal.Signals | None = None  # which signal ended the run
        self._requeue: int | None = None
        self._next = self._looked = 0
        self._time = 0.0

    def watch(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handlers, which puts back the ones before its own when the run is over."""
        self._noted.clear()
        self.by = None
        environment: Any = cluster_environment(trainer)  # of SLURM: has `auto_requeue` and `requeue_signal`
        self._requeue = environment.requeue_signal if getattr(environment, "auto_requeue", False) else None
        self._next = self._looked = trainer.global_step
        self._time = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            for number in (signal.SIGTERM, self._requeue):
                if number is not None:
                    signal.signal(number, self._note)
            # A job in the background of a shell ignores SIGINT, and must go on doing so.
            if self._usual is None and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                self._usual = signal.signal(signal.SIGINT, self._note)

    def unwatch(self) -> None:
        """Put back what SIGINT did before; a second call changes nothing."""
        # Lightning ignores further signals while it shuts down after a KeyboardInterrupt: that is left alone.
        if self._usual is not None and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._usual)
        self._usual = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Loader workers, which are forked from this process, come here too and must live until the step is over.
        again = number in self._noted
        self._noted.add(number)  # before a word is written: the second Ctrl-C may come while the first is answered
        if number == signal.SIGINT and os.getpid() == self._process:
            if again:
                raise KeyboardInterrupt
            text = "\nCtrl-C: stopping after this step and saving it; once more stops at once\n"
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except RuntimeError:  # it came in the middle of a write, into which Python's buffers take no other
                os.write(2, text.encode())

    def agreed(self, trainer: Trainer) -> bool:
        """Return whether to stop now, the same on every rank. Collective; to be called after every optimizer step.

        A requeue signal does what Lightning does (a checkpoint in `default_root_dir`, `scontrol requeue`) and does not
        stop: SLURM will.
        """
        told = next((number for number in (signal.SIGTERM, signal.SIGINT) if number in self._noted), None)
        noted = [float(told or 0), float(self._requeue in self._noted)]
        if trainer.world_size > 1:
            step = trainer.global_step
            if step < self._next:
                return False
            now = time.monotonic()
            pace = (now - self._time) / max(1, step - self._looked)
            both = torch.tensor([*noted, pace], device=trainer.strategy.root_device)
            *noted, pace = trainer.strategy.reduce(both, reduce_op="max").tolist()
            self._looked, self._time = step, now
            self._next = step + max(1, min(MOST_STEPS, int(LOOK_SECONDS / max(pace, 1e-6))))
        stop, should_requeue = int(noted[0]), bool(noted[1])
        if should_requeue and self._requeue is not None:
            self._noted.discard(self._requeue)
            requeue(trainer, self._requeue)
        if stop:
            # Lightning ends the run after this batch by a SIGTERMException.
            end_by_sigterm(trainer)
            self.by = signal.Signals(stop)
        return bool(stop)
