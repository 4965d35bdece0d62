"""Silence about what a user can do nothing about: tips, advertisements, warnings about deliberate settings."""

import logging
import warnings
from pathlib import Path
from typing import Any

import cubelet

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


class _HintFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(hint in message for hint in QUIET_LOGS)


def quiet_dependencies() -> None:
    """Silence tips, advertisements and warnings about deliberate settings; errors and all other warnings stay."""
    for pattern in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.pytorch"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _HintFilter) for f in logger.filters):
            logger.addFilter(_HintFilter())
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    if not isinstance(warnings.formatwarning, _WarningFormat):  # again at each call would nest one in the other
        warnings.formatwarning = _WarningFormat(warnings.formatwarning)


class _WarningFormat:
    """Prints warnings of this package without the line of code that Python puts below them; others as before."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual
        self.root = str(Path(cubelet.__file__).parent)

    def __call__(
        self, message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if filename.startswith(self.root):
            return f"{filename}:{lineno}: {category.__name__}: {message}\n"
        return self.usual(message, category, filename, lineno, line)


def warn_slow_bf16(precision: str, device_type: str) -> None:
    """Warn once where bfloat16 was asked of a processor that has no instructions for it."""
    import torch
    from lightning.pytorch.utilities import rank_zero_warn

    if device_type == "cpu" and "bf16" in precision and not torch.cpu._is_avx512_bf16_supported():
        rank_zero_warn(
            f"precision={precision} on a CPU without bfloat16 instructions is about 18 times slower than float32 here; "
            "use --trainer.precision=32-true, or a GPU"
        )
