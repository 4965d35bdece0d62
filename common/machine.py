"""What a run was computed on, in words: numbers of one machine and of another differ by rounding."""

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def processor() -> str:
    """Name of the processor and how many threads it has."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{lines[0].partition(':')[2].strip()} x {len(lines)}" if lines else name
    return name


def arithmetic(device: torch.device) -> str:
    """What decides the last digits of a result: processor or card, the instructions in use, torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
