"""What the command line says: short errors, and no hints from dependencies that a user can do nothing about."""

import difflib
import errno
import importlib
import inspect
import linecache
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from cubelet.common.errors import UserError

# Each pattern is a message about a choice this project made on purpose, or an advertisement.
QUIET_WARNINGS = (
    r".*does not have many workers which may be a bottleneck.*",
    r".*Consider increasing the value of the `num_workers` argument.*",
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*`torch.jit.*is deprecated.*",
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
)
QUIET_LOGS = (
    "Tip:",
    "GPU available",
    "TPU available",
    "HPU available",
    "litlogger",
    "litmodels",
    "`Trainer.fit` stopped",
    "Seed set to",
)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(hint in message for hint in QUIET_LOGS)


def quiet_dependencies() -> None:
    """Silence tips, advertisements and warnings about deliberate settings; errors and all other warnings stay."""
    for pattern in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.pytorch"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Quiet) for f in logger.filters):
            logger.addFilter(_Quiet())
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    warnings.formatwarning = _without_source(warnings.formatwarning)


def _without_source(usual: Callable[..., str]) -> Callable[..., str]:
    """Warnings of this package without the line of code that Python prints below them."""
    root = str(Path(__file__).parents[1])  # the folder of the package as it was imported

    def format_warning(
        message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(root):
            return f"{filename}:{lineno}: {category.__name__}: {message}\n"
        return usual(message, category, filename, lineno, line)

    return format_warning


# Lines of a parser error about the alternatives of a type rather than about the value.
NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Problem with given class_path",
    "Parser key",
)
COMPONENT_PACKAGES = (
    "cubelet.models.rotary",
    "cubelet.models.attention",
    "cubelet.models.blocks",
    "cubelet.models.embeddings",
    "cubelet.optimizers",
    "cubelet.callbacks",
    "torch.optim",
    "lightning.pytorch.callbacks",
)


def deepest(message: str) -> str:
    """One line for a nested parser error: the key, the value, and the innermost complaint about it.

    jsonargparse reports every alternative of a union type it tried, outermost first and indented; the most indented
    line that speaks of the value is the one that names the fault.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    key = next((m[1] for line in lines if (m := re.search(r'Parser key "([^"]+)"', line))), None)
    told = [line for line in lines if not line.strip(" -").startswith(NOISE)] or lines[-1:]
    depth = max(len(line) - len(line.lstrip(" -")) for line in told)
    fault = next(line.strip(" -") for line in told if len(line) - len(line.lstrip(" -")) == depth)
    if found := re.search(r"Option '\w+' is not accepted", fault):
        fault = found[0]
    fault = re.sub(r"<class '([\w.]+)'>", r"\1", fault)
    # What follows "Got value: Namespace(…" repeats the whole component.
    value = next((m[1] for line in lines if (m := re.search(r"Given value: ([^\s(]*[^\s(.])", line))), None)
    text = fault if key is None or key in fault else f"{key}: {fault}"
    if value is None or value in text or value in ("Namespace", "NestedArg"):
        return text
    return f"{text} (got {value})"


def known_names() -> tuple[dict[str, str], set[str]]:
    """Public components as {class name: full path}, and the names of all their options."""
    paths, options = {}, set()
    for package in COMPONENT_PACKAGES:
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name in getattr(module, "__all__", None) or dir(module):
            item = getattr(module, name, None)
            if isinstance(item, type) and item.__module__.startswith(package) and not issubclass(item, Exception):
                paths.setdefault(name, f"{package}.{name}")
                options.update(inspect.signature(item).parameters)
    return paths, options


def did_you_mean(message: str, keys: list[str]) -> str:
    """A suggestion for the name a parser's message stumbled over, or an empty string.

    Args:
        message: the whole message.
        keys: option names of the parser, without dashes.
    """
    if found := re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)|[Kk]ey '([\w.]+)' is not", message):
        wrong = found[1] or found[2]
        close = difflib.get_close_matches(wrong, keys, n=2, cutoff=0.75)
    elif found := re.search(r"[Oo]ption '([\w.]+)' is not accepted", message):
        close = difflib.get_close_matches(found[1], sorted(known_names()[1] - {found[1]}), n=2, cutoff=0.7)
    elif found := re.search(r"invalid choice: '(\w+)' \(choose from (.*)\)", message):
        close = difflib.get_close_matches(found[1], re.findall(r"\w+", found[2]), n=1)
    elif found := re.search(r"import path string: ([\w.]+)|class_path '([\w.]+)'|Got value: ([\w.]+)", message):
        paths, _ = known_names()
        wrong = next(g for g in found.groups() if g).rpartition(".")[2]
        close = [paths[name] for name in difflib.get_close_matches(wrong, sorted(paths), n=2, cutoff=0.6)]
    else:
        close = []
    return f"did you mean {' or '.join(close)}?" if close else ""


def raised_here(error: BaseException) -> bool:
    """Whether the error was raised by a `raise` of this package: then its message is meant for the user."""
    root = Path(__file__).resolve().parent.parent
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = Path(trace.tb_frame.f_code.co_filename)
    line = linecache.getline(str(file), trace.tb_lineno).strip()
    # The root of a checkout may hold a virtual environment, and an environment may hold the installed package.
    return file.is_relative_to(root) and ".venv" not in file.relative_to(root).parts and line.startswith("raise ")


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


def quiet_writers() -> None:
    """No trace from a logger's own thread that could not write: the main thread gets the same error."""
    usual = threading.excepthook

    def hook(told: threading.ExceptHookArgs) -> None:
        if disk_fault(told.exc_value) is None:
            usual(told)

    threading.excepthook = hook


def warn_slow_bf16(precision: str, device_type: str) -> None:
    """One warning where bfloat16 was asked of a processor that has no instructions for it."""
    if device_type == "cpu" and "bf16" in precision and not torch.cpu._is_avx512_bf16_supported():
        rank_zero_warn(
            f"precision={precision} on a CPU without bfloat16 instructions is about 18 times slower than float32 here; "
            "use --trainer.precision=32-true, or a GPU"
        )
