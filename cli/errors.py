"""What the command says of an exception: one line for what the user can mend, a trace and a summary for the rest.

Decided by the exception's class (`UserError`), never by where it was raised.
"""

import errno
import functools
import os
import site
import sysconfig
import threading
import traceback
from pathlib import Path
from types import TracebackType

import cubelet
from cubelet.common.errors import UserError

# What a full, read-only or vanished disk answers to a write.
WRITE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
EITHER_FAULTS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)  # of reading or of writing


def disk_fault(error: BaseException | None) -> str | None:
    """One sentence where the reason of `error` is a file that could not be written or read, else None.

    Loggers wrap the system's error in others (TensorBoard's says that a number cannot be logged), so the whole chain of
    reasons is looked at. An error that was written for the user is left to speak for itself.
    """
    seen = set()
    while error is not None and id(error) not in seen and not isinstance(error, UserError):
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in WRITE_FAULTS + EITHER_FAULTS:
            return _describe_disk_fault(error)
        error = error.__cause__ or error.__context__
    return None


def _describe_disk_fault(error: OSError) -> str:
    path = error.filename
    room = "Make room or choose another trainer.default_root_dir, then go on with --ckpt_path"
    if error.errno in WRITE_FAULTS:
        where = f" to {path}" if path else ""
        return f"cannot write{where}: {error.strerror}; the run has ended, its last checkpoint is untouched. {room}"
    if not path:
        return f"a file cannot be read or written: {error.strerror}; the run has ended, look at the disk it lies on"
    # The system does not say whether a file was opened for reading or for writing; what is allowed now tells.
    if os.path.exists(path) and not os.access(path, os.R_OK):
        return f"cannot read {path}: {error.strerror}; make it readable for this user (chmod u+r) or name another file"
    target = path if os.path.exists(path) else os.path.dirname(os.path.abspath(path))
    if not os.path.exists(target) or os.access(target, os.W_OK):
        return f"cannot open {path}: {error.strerror}; the disk, a folder above it or another program refuses it"
    return f"cannot write to {path}: {error.strerror}; the run has ended, its last checkpoint is untouched. {room}"


def user_message(error: BaseException) -> str | None:
    """Return one line where `error` is meant for the user, else None.

    A `UserError` anywhere in the chain of reasons counts, and so does a file that could not be read or written:
    loggers wrap the system's error in others (TensorBoard's says that a number cannot be logged).
    """
    chain = reasons(error)
    for link in chain:
        if isinstance(link, UserError):
            return " ".join(str(link).split())
    return disk_fault(error)


def reasons(error: BaseException | None) -> list[BaseException]:
    """Return `error`, its cause or context, theirs, and so on."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def summary(error: BaseException) -> str:
    """Return one line to stand below a trace: what was raised, and the innermost place that is the user's own."""
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {text}" + (f" ({place})" if (place := fault_place(error)) else "")


def fault_place(error: BaseException) -> str:
    """Return file, line and function of the innermost frame outside this package and its libraries.

    Where there is none, the innermost outside this package's command line and the libraries; "" without a trace.
    """
    frames = [frame for link in reversed(reasons(error)) for frame in traceback.extract_tb(link.__traceback__)]
    own = [frame for frame in frames if not (is_library(frame.filename) or is_package(frame.filename))]
    parts = [frame for frame in frames if is_package(frame.filename)]
    frame = next(iter(own[-1:] or parts[-1:] or frames[-1:]), None)
    return f"{_short(frame.filename)}, line {frame.lineno}, in {frame.name}" if frame else ""


@functools.cache
def _own_folders() -> tuple[Path, ...]:
    """The package's folder, and where the links of a checkout lead to."""
    root = Path(cubelet.__file__).absolute().parent
    return root, *(path.resolve() for path in root.iterdir() if path.is_dir())


def is_package(filename: str) -> bool:
    """Return whether a source file is one of this package."""
    path = Path(filename).absolute()
    return any(path.is_relative_to(folder) for folder in _own_folders())


def is_library(filename: str) -> bool:
    """Return whether a source file belongs to Python, an installed distribution or no file at all."""
    if filename.startswith("<"):
        return True
    places = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    path = Path(filename)
    return any(path.is_relative_to(place) for place in [*places, *site.getsitepackages()])


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def frames_of(trace: TracebackType | None) -> list:
    """Return the frames of a trace, outermost first."""
    return [frame for frame, _ in traceback.walk_tb(trace)]


def silence_writer_threads() -> None:
    """Print no trace of a logger's own thread that could not write: the main thread gets the same error."""
    usual = threading.excepthook
    if getattr(usual, "is_quiet", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or user_message(args.exc_value) is None:
            usual(args)

    hook.is_quiet = True  # pyright: ignore[reportFunctionMemberAccess]
    threading.excepthook = hook
