"""A run: one folder below a root, claimed by one process, and the checkpoints in it.

- A new run's folder is made by an exclusive `mkdir` of the first process, so ten runs that start in the same second
  have ten folders. While it runs, the process holds a lock on it: a run that died before its first checkpoint gives its
  name back, and two processes never continue the same run.
- A checkpoint belongs to the run whose `checkpoints` folder it lies in, wherever that was moved and whatever the
  working directory is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from cubelet.callbacks.checkpoints import best_checkpoint, is_readable, list_checkpoints, newest_checkpoint
from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError
from cubelet.common.files import rotate_backup

RUN_VARIABLE = "CUBELET_RUN"  # "pid|name" of the process that claimed a run, for those that it starts
LOCK = ".running"
# Words that Lightning's Trainer understands by itself.
TRAINERS_WORDS = ("hpc", "registry")


class Run:
    """A run's folder; make one with `claim`, or find that of a checkpoint with `of`.

    Example:
        >>> import tempfile
        >>> run = Run.claim(tempfile.mkdtemp(), "first")
        >>> run.name, run.last()
        ('first', None)
        >>> run.release()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lock: FileLock | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def root(self) -> Path:
        return self.folder.parent

    @property
    def config(self) -> Path | None:
        """The composed configuration, where the command line wrote one."""
        path = self.folder / "config.yaml"
        return path if path.is_file() else None

    def last(self) -> Path | None:
        """Return the newest checkpoint that can be read."""
        return newest_checkpoint(self.folder)

    def best(self) -> Path | None:
        """Return the checkpoint of the best validation."""
        return best_checkpoint(self.folder)

    @classmethod
    def claim(cls, root: str | os.PathLike[str], name: str | None = None) -> Run:
        """Make the folder of a new run and lock it.

        The processes that this one starts (DDP on one machine) inherit the run through the environment, and ranks that
        another launcher started only compute the path.

        Args:
            root: folder of all runs, on a local or mounted disk.
            name: of the run's folder; None for the start time.

        Raises:
            ConfigError: the name is no plain folder name, or a run has it.
        """
        root = local_root(root)
        check_name(name)
        owner, _, inherited = os.environ.get(RUN_VARIABLE, "").partition("|")
        if inherited and owner != str(os.getpid()) and name in (None, inherited):
            return cls(root / inherited)
        start = time.strftime("%Y-%m-%d_%H-%M-%S")
        if not is_first():
            return cls(root / (name or start))
        root.mkdir(parents=True, exist_ok=True)
        with _mutex(root):
            for candidate in (start if i == 1 else f"{start}_{i}" for i in itertools.count(1)):
                run = cls(root / (name or candidate))
                if run._make(is_named=name is not None):
                    os.environ[RUN_VARIABLE] = f"{os.getpid()}|{run.name}"
                    return run
        raise AssertionError("names do not end")

    def _make(self, is_named: bool) -> bool:
        """Make and lock the folder; False where it is taken and another name can be tried."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            if not is_named:
                return False
            restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # a job goes on in its own folder
            if not self._try_lock():
                raise ConfigError(f"{self.folder} is a run in progress; choose another --run_name") from None
            if list_checkpoints(self.folder) and not restarted:
                self.release()
                raise ConfigError(
                    f"{self.folder} holds an earlier run; choose another --run_name, or go on with "
                    f"--ckpt_path {self.folder}"
                ) from None
            if not restarted and self._remains():
                # It died before its first checkpoint: nothing to go on from, but its logs may tell why.
                self.release()
                kept = rotate_backup(self.folder)
                rank_zero_info(f"{self.folder} died before its first checkpoint; what it left is in {kept}")
                self.folder.mkdir()
        if self._lock is None:
            self._try_lock()
        return True

    def _remains(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name != LOCK]

    def resume(self) -> Run:
        """Lock the folder of an earlier run to go on in it; only the first process does.

        Raises:
            ConfigError: another process runs in it.
        """
        owner, _, inherited = os.environ.get(RUN_VARIABLE, "").partition("|")
        child = inherited == self.name and owner != str(os.getpid())
        if is_first() and not child:
            if not self._try_lock():
                raise ConfigError(f"{self.folder} is still running; wait for it, or stop it first")
            os.environ[RUN_VARIABLE] = f"{os.getpid()}|{self.name}"
        return self

    def release(self) -> None:
        """Let others go on in this run, or take its name where nothing was written."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # first the file, so that no other process locks a removed one
                (self.folder / LOCK).unlink()
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # where nothing was written

    def _try_lock(self) -> bool:
        """Lock the folder without waiting; True also where the file system knows no locks."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            return True
        self._lock = lock
        return True

    @classmethod
    def of(cls, checkpoint: str | os.PathLike[str]) -> Run | None:
        """Return the run that a checkpoint was written by, None where it lies in no run's `checkpoints` folder."""
        folder = Path(checkpoint).resolve().parent
        return cls(folder.parent) if folder.name == "checkpoints" else None

    @classmethod
    def newest(cls, root: str | os.PathLike[str]) -> Run | None:
        """Return the run below `root` that wrote the newest readable checkpoint."""
        newest = newest_checkpoint(root)
        return None if newest is None else cls.of(newest)


@contextlib.contextmanager
def _mutex(root: Path) -> Iterator[None]:
    """One claim at a time under a root; without locks `mkdir` alone decides."""
    lock = FileLock(root / ".claim")
    try:
        lock.acquire(timeout=30)
    except (Timeout, OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def is_first() -> bool:
    """Return whether this is the first process of a run, before a Trainer knows."""
    # `rank_zero_only` was told when Lightning was imported, which a fork may have been after.
    known = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return int(next((rank for rank in known if rank), getattr(rank_zero_only, "rank", 0))) == 0


def check_name(name: str | None) -> None:
    """Raise ConfigError unless a run's name is a plain folder name."""
    if name is None:
        return
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0") or name != name.strip():
        raise ConfigError(
            f"run_name {name!r} is no plain folder name; give one without slashes, and the folder of all runs as "
            "--trainer.default_root_dir"
        )


def local_root(root: str | os.PathLike[str]) -> Path:
    """Return the folder of all runs.

    Raises:
        ConfigError: it is on another file system: logs and samples are written as files, and would silently land in a
            local folder of that name.
    """
    if "://" in str(root):
        raise ConfigError(
            f"trainer.default_root_dir {root} is no local folder; run on a local or mounted one and copy the run's "
            "folder when it is over (checkpoints alone may go elsewhere: callbacks.checkpoint.dirpath)"
        )
    return Path(root)


def resolve_checkpoint(given: str, root: str | os.PathLike[str]) -> str | None:
    """Return the path that a value of `--ckpt_path` means.

    Args:
        given: a checkpoint (a file, or the folder of a sharded one); a run's folder, or its name below `root`, for its
            newest checkpoint; `last` for the newest below `root`; `best` for the best of the newest run there.
        root: folder of all runs.

    Returns:
        The path, or None for words that the Trainer handles itself.

    Raises:
        MissingFileError: no such file, or nothing to resume from.
        UnreadableFileError: the file is no whole checkpoint.
    """
    if given in TRAINERS_WORDS or given.startswith("registry:"):
        return None
    if given in ("last", "best"):
        run = Run.newest(root)
        found = newest_checkpoint(root) if given == "last" else run.best() if run else None
        if found is None:
            raise MissingFileError(
                f"there is no checkpoint under {root} for `{given}`; start a run without --ckpt_path first"
            )
        rank_zero_info(f"`{given}` is {found}")
        return str(found)
    if "://" in given:
        return given
    path = next((p for p in (Path(given), Path(root, given)) if p.exists()), None)
    if path is None:
        raise MissingFileError(f"checkpoint {given!r} does not exist; `--ckpt_path last` takes the newest under {root}")
    if path.is_dir() and not is_readable(path):
        found = newest_checkpoint(path)
        if found is None:
            raise MissingFileError(f"there is no checkpoint that can be read in {path}")
        rank_zero_info(f"the newest checkpoint of {path} is {found}")
        return str(found)
    if not is_readable(path):
        raise UnreadableFileError(f"{path} is not a readable checkpoint; `--ckpt_path last` takes the newest valid one")
    return str(path)
