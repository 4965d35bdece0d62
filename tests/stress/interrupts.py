"""Ctrl-C at random moments of a run: no step lost but the one in flight, no hang, and the resumed run bitwise equal.

    python -m tests.stress.interrupts FOLDER [COUNT]     # 100 by default; about 4 CPU-seconds each

Each case forks `cubelet fit` of 30 steps with validations, sends SIGINT after a random delay, compares `last.ckpt` with
the steps that were trained, and resumes to the end. Writes interrupts.json and exits with 1 where a case fails.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from tests.reference.interrupted import WORDS, _child

STEPS = 30
ARGUMENTS = [
    "--config=text", "--data.context_length=16", "--data.batch_size=4", "--model.dims=32", "--model.layers=2",
    f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=7", "--trainer.log_every_n_steps=5",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--callbacks.samples=null",
    "--callbacks.rotation=null", "--callbacks.fam=null",
]  # fmt: skip


class Trace(Callback):
    """Appends a line to a file when training begins and after each optimizer step, and slows the run a little."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, word: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{word}\n")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.write("start")

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        time.sleep(0.02)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.write(str(trainer.global_step))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.write("end")


def start(folder: Path, name: str, *more: str) -> int:
    """Fork a run; return the child's process id."""
    arguments = [
        "fit", *ARGUMENTS, f"--data.corpus={folder}/words.txt", f"--data.cache_dir={folder}/cache",
        f"--trainer.default_root_dir={folder}", f"--run_name={name}", *more,
    ]  # fmt: skip
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _child(arguments, said)
    return child


def wait(child: int, seconds: float) -> int | None:
    """Return the exit code, None where the process did not end in time (it is killed then)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):  # what is not filled yet is NaN in both
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def interrupt(folder: Path, number: int, whole: dict[str, Any], delay: float) -> str:
    """Do one case; return "" or what went wrong."""
    name = f"run{number}"
    trace = folder / f"{name}.steps"
    child = start(
        folder, name, "--trainer.callbacks+=tests.stress.interrupts.Trace", f"--trainer.callbacks.path={trace}"
    )
    while not trace.exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            return "ends before training"
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(child, signal.SIGINT)
    code = wait(child, 60)
    lines = trace.read_text().split()
    trained = max((int(line) for line in lines if line.isdigit()), default=0)
    if code is None:
        return f"hangs after step {trained}"
    if "end" in lines and trained == STEPS:
        return ""  # it was over, or nearly: Python's own Ctrl-C
    path = folder / name / "checkpoints/last.ckpt"
    if code != 130:
        return f"exit status {code} after step {trained}"
    saved = torch.load(path, weights_only=True)["global_step"]
    if saved != trained:
        return f"trained {trained} steps and saved {saved}"
    code = wait(start(folder, name, f"--ckpt_path={folder / name}"), 120)
    if code != 0:
        return f"resuming ends with {code}"
    resumed = torch.load(path, weights_only=True)
    for part in ("state_dict", "lr_schedulers"):
        if not same(whole[part], resumed[part]):
            return f"{part} differs after resuming from step {trained}"
    for a, b in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        # torch adds the defaults of options that an optimizer does not have when it loads a state
        groups = [{k: two[k] for k in one} for one, two in zip(a["param_groups"], b["param_groups"], strict=True)]
        if not (same(a["state"], b["state"]) and same(a["param_groups"], groups)):
            return f"the optimizer's state differs after resuming from step {trained}"
    return ""


def main(folder: Path, count: int = 100) -> Counter:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text(WORDS * 60)
    begun = time.monotonic()
    assert wait(start(folder, "whole"), 300) == 0
    span = max(1.0, min(6.0, 0.7 * (time.monotonic() - begun)))
    whole = torch.load(folder / "whole/checkpoints/last.ckpt", weights_only=True)
    draw = random.Random(0)
    results = {}
    for number in range(count):
        results[number] = interrupt(folder, number, whole, draw.random() * span)
        sys.stdout.write(f"{number}: {results[number] or 'as it should be'}\n")
        sys.stdout.flush()
    (folder / "interrupts.json").write_text(json.dumps(results))
    return Counter(results.values())


if __name__ == "__main__":
    outcome = main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    sys.stdout.write(f"{dict(outcome)}\n")
    sys.exit(set(outcome) != {""})
