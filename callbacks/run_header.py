"""What trains, on what, for how long and where to: a few lines at the start of a fit."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from cubelet.common.run_folder import run_folder

# Hyper-parameters that name components, in the order in which they are told.
COMPONENTS = ("rotary", "attention", "block", "optimizer")


class RunHeader(Callback):
    """Prints the lines on rank 0, before the first step. Made by the command line.

    Example:
        >>> callback = RunHeader()
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        folder = run_folder(trainer)  # collective
        if trainer.is_global_zero:
            for name, text in header_rows(trainer, pl_module, folder):
                print(f"{name:<9}{text}", flush=True)


def header_rows(trainer: Any, module: Any, folder: Path | None) -> list[tuple[str, str]]:
    """Return (name, text) of each line; what a module or its data does not say is left out."""
    hyper = dict(getattr(module, "hparams", {}))
    shape = [f"{hyper[key]} {key}" for key in ("layers", "heads") if key in hyper]
    shape += [f"dims {hyper['dims']}"] if "dims" in hyper else []
    classes = [name for key in COMPONENTS if (name := class_name(hyper.get(key)))]
    model = f"{type(module).__name__}, {parameters(module)} parameters"
    rows = [("model", "; ".join([model, *filter(None, [", ".join(shape)])]))]
    if classes:
        rows.append(("parts", ", ".join(classes)))
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    ranks = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    rows.append(("device", f"{ranks}{name}{threads}, precision {trainer.precision}"))
    if trainer.datamodule is not None:
        rows.append(("data", describe_data(trainer.datamodule)))
    steps = f"{trainer.max_steps:,} steps" if (trainer.max_steps or -1) > 0 else f"{trainer.max_epochs} epochs"
    if trainer.global_step:
        steps += f", from step {trainer.global_step:,}"
    rows.append(("length", steps))
    if folder is not None:
        rows.append(("folder", _short(folder)))
    return rows


def describe_data(data: Any) -> str:
    """Return a data module's own name, and what its attributes say."""
    parts = [str(getattr(data, key)) for key in ("corpus", "task") if isinstance(getattr(data, key, None), str)]
    if isinstance(vocabulary := getattr(data, "vocab_size", None), int):
        parts.append(f"vocabulary {vocabulary:,}")
    batch, length = getattr(data, "batch_size", None), getattr(data, "context_length", None)
    if isinstance(batch, int) and isinstance(length, int):
        parts.append(f"batches of {batch} × {length}")
    return f"{type(data).__name__}: {', '.join(parts)}" if parts else type(data).__name__


def class_name(value: Any) -> str:
    """Return the class that a stored component names, "" for none."""
    path = value.get("class_path") if isinstance(value, dict) else None
    return str(path).rpartition(".")[2] if path else ""


def parameters(module: Any) -> str:
    """Return the number of trainable parameters in three digits: 796 k, 1.84 M."""
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(count)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
