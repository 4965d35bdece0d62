"""What the command line says: short errors, and none of the hints from dependencies that a user can do nothing about."""

import difflib
import logging
import re
import warnings

import torch
from lightning.pytorch.utilities import rank_zero_warn

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
    for name in ("lightning.fabric.utilities.seed",):
        logging.getLogger(name).setLevel(logging.WARNING)


def deepest(message: str) -> str:
    """The line of a nested parser error that names the actual fault.

    jsonargparse reports every alternative of a union type it tried, outermost first and indented; the most indented
    line is the one about the value itself.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    if not lines:
        return message
    depth = max(len(line) - len(line.lstrip(" -")) for line in lines)
    found = [line.strip(" -") for line in lines if len(line) - len(line.lstrip(" -")) == depth]
    head = lines[0].strip()
    tail = found[-1]
    return head if head == tail else f"{head}\n  {tail}"


def did_you_mean(message: str, names: list[str]) -> str:
    """A suggestion for the first unknown name in a parser's message, or an empty string."""
    for wrong in re.findall(r"(?:[Kk]ey '|arguments: --|Unrecognized arguments: --|option '|Option ')([\w.\-]+)", message):
        last = wrong.rpartition(".")[2]
        close = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
        close = close or [n for n in names if n.rpartition(".")[2] in difflib.get_close_matches(last, [last, *(
            m.rpartition(".")[2] for m in names)], n=2, cutoff=0.7) and n != wrong][:3]
        if close:
            return f"did you mean {' or '.join(close)}?"
    return ""


def warn_slow_bf16(precision: str, device_type: str) -> None:
    """One warning where bfloat16 was asked of a processor that has no instructions for it."""
    if device_type == "cpu" and "bf16" in precision and not torch.cpu._is_avx512_bf16_supported():
        rank_zero_warn(
            f"precision={precision} on a CPU without bfloat16 instructions is about 18 times slower than float32 here; "
            "use --trainer.precision=32-true, or a GPU"
        )
