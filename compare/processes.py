"""Doing runs: several at a time, each in a process of its own, going on where a kill left them.

Processes are forked from this one where the system can, since it has imported everything but computed nothing: an
import costs as much as a small run. Each takes a lock on its folder, and on Linux is stopped when this process dies, so
a command given again after a kill never trains beside its own leftovers.
"""

import contextlib
import ctypes
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from cubelet.callbacks.checkpoints import is_readable
from cubelet.callbacks.run_metrics import METRICS_FILE, PROGRESS_FILE
from cubelet.common.errors import UserError
from cubelet.common.source_digest import source_digest

from .runs import Run

DIVERGED = "diverged: its last validation loss is not a finite number"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG

Fit = Callable[[Sequence[str]], None]  # does `cubelet fit ARGUMENTS` in this process


@dataclass
class RunResult:
    """What came of a run: `measures` (see `RunMetrics`) or, where it failed, `fault` in one line."""

    run: Run
    measures: dict[str, Any] | None = None
    fault: str | None = None

    @property
    def loss(self) -> float | None:
        """Final validation loss, or None."""
        return None if self.fault or not self.measures else self.measures["val_loss"]


def read_result(run: Run, root: Path) -> RunResult | None:
    """The result of a finished run, or None. A run that failed is not finished: it is tried again."""
    try:
        measures = json.loads((root / run.name / METRICS_FILE).read_text())
    except (OSError, ValueError):
        return None
    finished = measures["val_loss"] is not None and math.isfinite(measures["val_loss"])
    return RunResult(run, measures, None if finished else DIVERGED)


def adopt(runs: Iterable[Run], root: Path, shared: Path) -> None:
    """Copy into `root` what another experiment in `shared` has finished by the same command and the same source code.

    The baseline of several experiments is trained once. Checkpoints stay where they are; a run that another process
    is doing is left alone.
    """
    for run in runs:
        if read_result(run, root) is not None:
            continue
        name = f"*-{run.purpose}-{run.seed}-{run.key[:10]}"
        for other in sorted(shared.glob(f"*/runs/{name}/{METRICS_FILE}")):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(other.read_text()).get("source") != source_digest():
                    continue
                with FileLock(sidecar_path(run, root, "lock"), timeout=0):
                    copy = sidecar_path(run, root, "copy")
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(other.parent, copy, ignore=shutil.ignore_patterns("checkpoints"))
                    shutil.rmtree(root / run.name, ignore_errors=True)  # what a killed run left
                    copy.rename(root / run.name)
                break


def train(run: Run, root: Path, fit: Fit) -> str | None:
    """Do a run, or the rest of it, in this process; returns a sentence where it failed."""
    folder = root / run.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(sidecar_path(run, root, "lock")):
            if read_result(run, root) is not None:
                return None
            arguments = run.fit_arguments(root)
            last = folder / "checkpoints" / "last.ckpt"
            if last.is_file() and is_readable(last):
                arguments.append(f"--ckpt_path={last}")
            else:  # killed before its first checkpoint: nothing to go on from
                shutil.rmtree(folder, ignore_errors=True)
            threads = torch.get_num_threads()
            torch.set_num_threads(run.threads)
            try:
                fit(arguments)
            finally:
                torch.set_num_threads(threads)
        return None if read_result(run, root) is not None else "ended without measures; see its log"
    except SystemExit as stop:
        if stop.code in (0, None):
            return "was stopped"
        return one_line(str(stop.code)) if isinstance(stop.code, str) else f"ended with status {stop.code}"
    except KeyboardInterrupt:
        return "was interrupted"
    except UserError as error:
        return one_line(str(error))
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return one_line(f"{type(error).__name__}: {error}")


def sidecar_path(run: Run, root: Path, kind: str) -> Path:
    """Path of a run's log, lock or failure: beside its folder, which is the run's own."""
    return root / f"{run.name}.{kind}"


def one_line(text: str, most: int = 240) -> str:
    """The first line that says something, without "error: "; only its first sentence where it is a long one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = (lines[0] if lines else "no message").removeprefix("error: ")
    text = text.partition(". ")[0] if len(text) > most // 2 else text
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _child(run: Run, root: Path, fit: Fit, parent: int) -> None:
    """In a process of its own: output goes to the run's log, a failure's sentence to a file."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's ^C stops it by SIGTERM, between two steps
    fault: str | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        log = os.open(sidecar_path(run, root, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Whatever stood in for them in the parent (a test's capture, say) is not the log.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        fault = train(run, root, fit)
        if fault:
            sidecar_path(run, root, "failure").write_text(fault)
    except OSError as error:
        fault = str(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1 if fault else 0)


@dataclass
class Progress:
    """How far `execute` is: all runs, how many are done, which are running, and how many seconds each took."""

    total: int = 0
    done: int = 0
    active: list[Run] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    jobs: int = 1

    def seconds_left(self) -> float:
        """Estimate until all are done; NaN until one is."""
        if not self.seconds:
            return math.nan
        return (self.total - self.done) * sum(self.seconds) / len(self.seconds) / max(1, self.jobs)


# Called whenever something changes, and every second; with the result where a run has just ended.
ProgressCallback = Callable[[Progress, RunResult | None], None]


def select_waiting(runs: Iterable[Run], root: Path) -> tuple[dict[str, RunResult], list[Run]]:
    """({key: result} of the finished runs, the others); duplicates (the same key) count once."""
    unique: dict[str, Run] = {}
    for run in runs:
        unique.setdefault(run.key, run)
    results = {key: result for key, run in unique.items() if (result := read_result(run, root)) is not None}
    return results, [run for key, run in unique.items() if key not in results]


def execute(
    runs: Iterable[Run], root: Path, fit: Fit, jobs: int = 1, on_progress: ProgressCallback | None = None
) -> dict[str, RunResult]:
    """Do runs and return {key: result}; those that are finished are only read.

    Args:
        runs: duplicates (the same key) are done once.
        root: folder of their folders.
        fit: see `CommandLine`.
        jobs: processes at a time; 0 does them one after another in this process (for tests and debuggers).
        on_progress: see `ProgressCallback`.
    """
    results, waiting = select_waiting(runs, root)
    progress = Progress(len(waiting), jobs=jobs)
    report = on_progress or (lambda progress, result: None)

    def finish(run: Run, fault: str | None, began: float) -> None:
        result = read_result(run, root) or RunResult(run, fault=fault or "ended without measures; see its log")
        results[run.key] = result
        progress.done += 1
        progress.seconds.append(time.monotonic() - began)
        report(progress, result)

    if jobs == 0:
        for run in waiting:
            progress.active = [run]
            began = time.monotonic()
            finish(run, train(run, root, fit), began)
        return results
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if can_fork else "spawn")
    running: dict[str, tuple[Run, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                with contextlib.suppress(OSError):
                    sidecar_path(run, root, "failure").unlink(missing_ok=True)
                process = context.Process(target=_child, args=(run, root, fit, os.getpid()), daemon=False)
                process.start()
                running[run.key] = (run, process, time.monotonic())
                progress.active = [run for run, _, _ in running.values()]
            ended = multiprocessing.connection.wait([p.sentinel for _, p, _ in running.values()], timeout=1.0)
            for process in [p for _, p, _ in running.values() if p.sentinel in ended]:
                process.join(timeout=1.0)
            for key, (run, process, began) in list(running.items()):
                if process.exitcode is None:
                    continue
                process.join()
                del running[key]
                progress.active = [run for run, _, _ in running.values()]
                finish(run, _fault(run, root, process.exitcode), began)
            report(progress, None)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()
    return results


def _fault(run: Run, root: Path, status: int | None) -> str | None:
    if status == 0:
        return None
    with contextlib.suppress(OSError):
        if message := sidecar_path(run, root, "failure").read_text().strip():
            return message
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    return f"ended with status {status} and could write no message (is the disk full?)"


def read_progress(run: Run, root: Path) -> dict[str, Any]:
    """Where a running run is: `step`, `of`, `loss`; empty before its first steps."""
    try:
        return json.loads((root / run.name / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return {}
