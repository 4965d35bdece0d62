"""Runs that are killed and resumed, for tests/resume.

`python -m tests.reference.interrupted FOLDER` imports everything once and forks a child for every run, so that a run
costs a second instead of an interpreter's start. Each child is the command line itself: what it does ends in FOLDER.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from cubelet.callbacks import signals as interruption
from cubelet.cli.main import main
from cubelet.common import files

WORDS = "the quick brown fox jumps over the lazy dog and runs away from every noisy cat\n"
# 20 optimizer steps in epochs of 7 batches, a validation every 6, a checkpoint every 5.
BASE = [
    "--config=configs/text.yaml",
    "--data.context_length=16",
    "--data.batch_size=4",
    "--data.batches_per_epoch=7",
    "--model.dims=32",
    "--model.layers=1",
    "--model.dropout=0.2",
    "--model.optimizer.start_step=2",
    "--model.optimizer.analyse_every=2",
    "--model.optimizer.min_size=16",
    "--model.optimizer.history=8",
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=6",
    "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--callbacks.progress=null",
    "--callbacks.last.every_n_steps=5",
    "--callbacks.cycler.every_n_steps=1",
    "--callbacks.cycler.order=random",
    "--callbacks.base.every_n_steps=2",
    "--callbacks.fam.every_n_steps=4",
    "--callbacks.rotation.every_n_steps=4",
    '--callbacks.samples.prompts=["the "]',
    "--callbacks.samples.max_new_tokens=4",
]
WORKERS = ["--data.num_workers=2"]
ACCUMULATE = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=12", "--trainer.val_check_interval=5"]
DDP = ["--config=configs/strategy/ddp.yaml", "--trainer.devices=2"]
# Muon, the default's base, needs whole matrices.
SHARDED = ["--config=configs/strategy/fsdp2.yaml", "--trainer.devices=2", "--model.optimizer.base=adamw"]
REFERENCES: dict[str, list[str]] = {"plain": [], "accumulate": ACCUMULATE, "ddp": DDP, "sharded": SHARDED}
TWO_RANKS = ("ddp", "sharded")
# name: (reference, further arguments, kills in turn as (hook, how many calls of it))
KILLS: dict[str, tuple[str, list[str], list[tuple[str, int]]]] = {
    "inside a step": ("plain", [], [("on_after_backward", 13)]),
    "in the optimizer's step, 2 workers": ("plain", WORKERS, [("on_before_zero_grad", 9)]),
    "at an epoch's end": ("plain", [], [("on_train_epoch_end", 2)]),
    "at an epoch's start, 2 workers": ("plain", WORKERS, [("on_train_epoch_start", 3)]),
    "between epochs, saved by its last batch": (
        "plain",
        ["--callbacks.last.every_n_steps=7"],
        [("on_train_epoch_start", 2)],
    ),
    "before a checkpoint": ("plain", [], [("on_save_checkpoint", 4)]),
    "writing a checkpoint": ("plain", [], [("write", 4)]),
    "after a checkpoint": ("plain", [], [("replace", 4)]),
    "in a validation": ("plain", [], [("on_validation_batch_end", 2)]),
    "three times": ("plain", [], [("replace", 1), ("on_train_batch_start", 4), ("on_validation_end", 2)]),
    "inside a window": ("accumulate", [], [("on_after_backward", 16)]),
    "after saving best weights inside a window": (
        "accumulate",
        ["--callbacks.last.every_n_steps=2"],
        [("on_train_batch_start", 6)],
    ),
    "two ranks": ("ddp", [], [("on_after_backward", 12)]),
    "two ranks, sharded": ("sharded", [], [("on_after_backward", 12)]),
}
# name: (reference, callback of the first run and its arguments, whether it is said to have ended well)
TROUBLES: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "told to stop": ("plain", "Kill", {"hook": "on_after_backward", "count": 13, "number": 15}, True),
    "told to stop before a validation": (
        "plain",
        "Kill",
        {"hook": "on_after_backward", "count": 12, "number": 15},
        True,
    ),
    "one rank told to stop": (
        "ddp",
        "Kill",
        {"hook": "on_after_backward", "count": 13, "number": 15, "rank": 1},
        True,
    ),
    "disk full": ("plain", "SmallDisk", {"first": 7}, False),
    "disk full for a while": ("plain", "SmallDisk", {"first": 7, "until": 13}, True),
    "not a number": ("plain", "Poison", {"step": 14}, False),
    "no place for logs": ("plain", "SmallDisk", {"first": 13, "size": 1}, False),
}


class Kill(Callback):
    """Ends its process, or sends it a signal, at the n-th call of a hook.

    `write` and `replace` are places inside the writing of a checkpoint: with half the file on the disk, and after the
    new file took its name.
    """

    def __init__(self, hook: str, count: int, number: int = int(signal.SIGKILL), rank: int | None = None) -> None:
        self.hook, self.left, self.number, self.rank = hook, count, number, rank
        interruption.LOOK_SECONDS = 0.0  # ranks agree at every step
        if hook == "write":
            fsync = files.os.fsync

            def half(descriptor: int) -> None:
                if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".ckpt.partial"):
                    if self.left == 1:
                        os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
                    self.hit()
                fsync(descriptor)

            files.os = _Patched(fsync=half)
        elif hook == "replace":

            def replace(source: Any, target: Any) -> None:
                os.replace(source, target)
                if str(target).endswith(".ckpt"):
                    self.hit()

            files.os = _Patched(replace=replace)
        else:
            setattr(self, hook, self.hit)

    def hit(self, *arguments: Any, **named: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.rank in (None, int(os.environ.get("LOCAL_RANK", "0"))):
            os.kill(os.getpid(), self.number)


class _Patched:
    """The `os` module with another function in some place."""

    def __init__(self, **functions: Any) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class SmallDisk(Callback):
    """From an optimizer step on no file may grow beyond a size, as on a full disk; until another step.

    The usual size lies between the log of pictures (270 kB at the end) and a checkpoint (400 kB).
    """

    def __init__(self, first: int, until: int = 10**9, size: int = 300_000) -> None:
        self.first, self.until, self.size = first, until, size

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        limit = self.size if self.first <= trainer.global_step < self.until else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


class Poison(Callback):
    """Makes the loss of one optimizer step, counted from 1, not a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1:
            pl_module.penalty_weight = float("nan")


def attach(name: str, **arguments: Any) -> list[str]:
    """Command line arguments that add a callback of this file."""
    own = [f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()]
    return [f"--trainer.callbacks+=tests.reference.interrupted.{name}", *own]


class Runs:
    """Starts children and collects how they ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends: dict[str, list[int]] = {}
        (folder / "words.txt").write_text(WORDS * 60)

    def base(self) -> list[str]:
        """Arguments that all runs share."""
        return [*BASE, f"--data.corpus={self.folder}/words.txt", f"--data.cache_dir={self.folder}/cache"]

    def __call__(
        self, name: str, arguments: list[str], ranks: int = 1, environment: dict[str, str] | None = None
    ) -> None:
        """One run of `cubelet fit` under FOLDER/NAME; waits for it."""
        root = self.folder / name
        root.mkdir(exist_ok=True)
        whole = ["fit", *self.base(), f"--trainer.default_root_dir={root}", *arguments]
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        read, write = os.pipe()
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                os.environ.update(environment or {})
                if ranks > 1:
                    os.environ.update(
                        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), NODE_RANK="0",
                        LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo",
                    )  # fmt: skip
                os.close(read)
                _child(whole, write)
            children.append(child)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        # A pipe, since some runs cannot write files; not until its end, since loader workers outlive a kill a little.
        os.set_blocking(read, False)
        with (root / "said.txt").open("ab") as file, contextlib.suppress(BlockingIOError):
            while piece := os.read(read, 1 << 16):
                file.write(piece)
        os.close(read)
        os.close(write)
        self.ends.setdefault(name, []).append(ends[0] if ranks == 1 else max(map(abs, ends)))


def _child(arguments: list[str], said: int) -> None:
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 1
    try:
        main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def everything(folder: Path, only: str = "") -> dict[str, list[int]]:
    run = Runs(folder)
    resume = ["--ckpt_path=last"]
    for name, arguments in REFERENCES.items():
        run(name, arguments, ranks=2 if name in TWO_RANKS else 1)
    for name, (reference, arguments, kills) in KILLS.items():
        if only not in name:
            continue
        whole, ranks = [*REFERENCES[reference], *arguments], 2 if reference in TWO_RANKS else 1
        for number, (hook, count) in enumerate(kills):
            run(name, [*whole, *(resume if number else []), *attach("Kill", hook=hook, count=count)], ranks)
        run(name, [*whole, *resume], ranks)
    for name, (reference, callback, settings, _) in TROUBLES.items():
        if only not in name:
            continue
        ranks = 2 if reference in TWO_RANKS else 1
        run(name, [*REFERENCES[reference], *attach(callback, **settings)], ranks)
        shutil.copytree(folder / name, folder / f"{name}, before resuming")
        run(name, [*REFERENCES[reference], *resume], ranks)
    on_slurm(run, folder)
    return run.ends


def on_slurm(run: Runs, folder: Path) -> None:
    """The requeue signal in the middle of a step, and the job that SLURM starts again by the same command."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n')
    (tools / "scontrol").chmod(0o755)
    environment = {
        "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }  # fmt: skip
    signal_then_kill = [
        *attach("Kill", hook="on_after_backward", count=13, number=int(signal.SIGUSR1)),
        *attach("Kill", hook="on_before_optimizer_step", count=17),
    ]
    command = ["--run_name=job-17"]
    run("requeued", [*command, *signal_then_kill], environment=environment)
    shutil.copytree(folder / "requeued", folder / "requeued, before resuming")
    run("requeued", command, environment=environment | {"SLURM_RESTART_COUNT": "1"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    (target / "ends.json").write_text(json.dumps(everything(target, *sys.argv[2:])))
