"""Which code made a run: one hash over this package's Python files."""

import hashlib
from functools import cache
from pathlib import Path

# Rooms whose code decides the numbers of a run; reports and the command line do not.
ROOMS = ("common", "models", "optimizers", "callbacks", "datamodules", "lightning_modules")


@cache
def source_digest() -> str:
    """Twelve hexadecimal digits that stand for the Python files of `ROOMS`, as they were when first asked."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
