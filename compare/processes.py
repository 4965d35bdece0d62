"""Doing runs: several at a time, each in a process of its own, going on where a kill left them.

Processes are forked from this one, which has imported everything but computed nothing: an import costs as much as a
small run. Each takes a lock on its folder, and on Linux is told to stop when this process dies, so a command given
again after a kill never trains beside its own leftovers.
"""

import contextlib
import ctypes
import fcntl
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from cubelet.callbacks.checkpoints import is_readable
from cubelet.cli.main import main

from .measure import NAME, PROGRESS
from .runs import Run

DIVERGED = "diverged: its last validation loss is not a finite number"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass
class Result:
    """What came of a run: `measures` (see `Measures`) or, where it failed, `fault` in one line."""

    run: Run
    measures: dict[str, Any] | None = None
    fault: str | None = None

    @property
    def loss(self) -> float | None:
        """Final validation loss, or None."""
        return None if self.fault or not self.measures else self.measures["val_loss"]


def read(run: Run, root: Path) -> Result | None:
    """The result of a finished run, or None. A run that failed is not finished: it is tried again."""
    try:
        measures = json.loads((root / run.name / NAME).read_text())
    except (OSError, ValueError):
        return None
    finished = measures["val_loss"] is not None and math.isfinite(measures["val_loss"])
    return Result(run, measures, None if finished else DIVERGED)


def train(run: Run, root: Path) -> str | None:
    """Do a run, or the rest of it, in this process; a sentence where it failed."""
    folder = root / run.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with beside(run, root, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if read(run, root) is not None:
                return None
            command = run.command(root)
            last = folder / "checkpoints" / "last.ckpt"
            if last.is_file() and is_readable(last):
                command.append(f"--ckpt_path={last}")
            else:  # killed before its first checkpoint: nothing to go on from
                shutil.rmtree(folder, ignore_errors=True)
            threads = torch.get_num_threads()
            torch.set_num_threads(run.threads)
            try:
                main(command)
            finally:
                torch.set_num_threads(threads)
        return None if read(run, root) is not None else "ended without measures; see its log"
    except SystemExit as stop:
        if stop.code in (0, None):
            return "was told to stop"
        return one_line(str(stop.code)) if isinstance(stop.code, str) else f"ended with status {stop.code}"
    except KeyboardInterrupt:
        return "was interrupted"
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return one_line(f"{type(error).__name__}: {error}")


def beside(run: Run, root: Path, kind: str) -> Path:
    """Path of a run's log, lock or failure: beside its folder, which is the run's own."""
    return root / f"{run.name}.{kind}"


def one_line(text: str, most: int = 240) -> str:
    """The first line that says something, without "error: "; only its first sentence where it is a long one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = (lines[0] if lines else "no message").removeprefix("error: ")
    text = text.partition(". ")[0] if len(text) > most // 2 else text
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _child(run: Run, root: Path, parent: int) -> None:
    """In a forked process: output goes to the run's log, a failure's sentence to a file."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's ^C stops it by SIGTERM, between two steps
    fault: str | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        log = os.open(beside(run, root, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Whatever stood in for them in the parent (a test's capture, say) is not the log.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        fault = train(run, root)
        if fault:
            beside(run, root, "failure").write_text(fault)
    except OSError as error:
        fault = str(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1 if fault else 0)


@dataclass
class Watch:
    """What a display is told: all `runs` so far, how many are done, which are going on, and how long they take."""

    total: int = 0
    done: int = 0
    active: list[Run] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    jobs: int = 1

    def left(self) -> float:
        """Estimated seconds until all are done; NaN until one was."""
        if not self.seconds:
            return math.nan
        return (self.total - self.done) * sum(self.seconds) / len(self.seconds) / max(1, self.jobs)


Told = Callable[[Watch, Result | None], None]


def execute(runs: Iterable[Run], root: Path, jobs: int = 1, told: Told | None = None) -> dict[str, Result]:
    """Do runs and return {key: result}; those that are finished are only read.

    Args:
        runs: duplicates (the same key) are done once.
        root: folder of their folders.
        jobs: processes at a time; 0 does them one after another in this process (for tests and debuggers).
        told: called whenever something changes, and every second.
    """
    results: dict[str, Result] = {}
    waiting: list[Run] = []
    unique: dict[str, Run] = {}
    for run in runs:
        unique.setdefault(run.key, run)
    for run in unique.values():
        found = read(run, root)
        if found is None:
            waiting.append(run)
        else:
            results[run.key] = found
    watch = Watch(len(waiting), jobs=jobs)
    tell = told or (lambda watch, result: None)
    if jobs == 0:
        for run in waiting:
            watch.active = [run]
            began = time.monotonic()
            fault = train(run, root)
            _finish(run, root, fault, results, watch, began, tell)
        return results
    context = multiprocessing.get_context("fork")
    going: dict[str, tuple[Run, BaseProcess, float]] = {}
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.pop(0)
                with contextlib.suppress(OSError):
                    beside(run, root, "failure").unlink(missing_ok=True)
                process = context.Process(target=_child, args=(run, root, os.getpid()), daemon=False)
                process.start()
                going[run.key] = (run, process, time.monotonic())
                watch.active = [run for run, _, _ in going.values()]
            ended = multiprocessing.connection.wait([p.sentinel for _, p, _ in going.values()], timeout=1.0)
            for process in [p for _, p, _ in going.values() if p.sentinel in ended]:
                process.join(timeout=1.0)
            for key, (run, process, began) in list(going.items()):
                if process.exitcode is None:
                    continue
                process.join()
                del going[key]
                watch.active = [run for run, _, _ in going.values()]
                _finish(run, root, _fault(run, root, process.exitcode), results, watch, began, tell)
            tell(watch, None)
    finally:
        for _, process, _ in going.values():
            process.terminate()
        for _, process, _ in going.values():
            process.join()
    return results


def _finish(
    run: Run, root: Path, fault: str | None, results: dict[str, Result], watch: Watch, began: float, tell: Told
) -> None:
    result = read(run, root) or Result(run, fault=fault or "ended without measures; see its log")
    results[run.key] = result
    watch.done += 1
    watch.seconds.append(time.monotonic() - began)
    tell(watch, result)


def _fault(run: Run, root: Path, status: int | None) -> str | None:
    if status == 0:
        return None
    with contextlib.suppress(OSError):
        if told := beside(run, root, "failure").read_text().strip():
            return told
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    return f"ended with status {status} and could write no message (is the disk full?)"


def progress(run: Run, root: Path) -> dict[str, Any]:
    """Where a running run is: `step`, `of`, `loss`; empty before its first steps."""
    try:
        return json.loads((root / run.name / PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
