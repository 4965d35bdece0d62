"""A JSON-lines file that survives a kill and fits a resumed run exactly: no line lost, none twice.

Lines are handed to the operating system in one write per dump, so a killed process leaves at most one torn last line.
On resume the lines past the resumed step, and a torn one, are cut off by writing the rest to a neighbour and renaming
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO


class DumpFile:
    """Appends records with a `step` to a file.

    Args:
        path: of the file; its folder is made when the first record comes.
        step: records of later steps, left by a run that went on past the checkpoint now resumed, are removed.
        earlier: file of the run that is resumed, when it lies in another folder: its records up to `step` come first.
    """

    def __init__(self, path: Path, step: int, earlier: Path | None = None) -> None:
        self.path = path
        self._file: TextIO | None = None
        source = path if path.exists() else earlier
        if source is not None and source.exists():
            kept = [line for line in source.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            _replace(path, "".join(f"{line}\n" for line in kept))

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records (plain numbers, lists and strings), one line each, and flush them."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    with neighbour.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    neighbour.replace(path)
