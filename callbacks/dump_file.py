"""Files that survive a kill and fit a resumed run exactly: no line lost, none twice. JSON lines, mostly.

Lines are handed to the operating system in one write per dump, so a killed process leaves at most one torn last line.
On resume the lines past the resumed step, and a torn one, are cut off by writing the rest to a neighbour and renaming
it. A run that starts anew never touches what an earlier one left in the same place: that is renamed.
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
        step: records of later steps, left by a run that went on past the checkpoint now resumed, are removed. At 0, a
            new run, an existing file is set aside whole.
        earlier: file of the run that is resumed, when it lies in another folder: its records up to `step` come first.
    """

    def __init__(self, path: Path, step: int, earlier: Path | None = None) -> None:
        self.path = path
        self._file: TextIO | None = None
        if step == 0:
            set_aside(path)
        source = path if path.exists() else earlier
        if source is not None and source.exists():
            kept = [line for line in source.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            replace(path, "".join(f"{line}\n" for line in kept))

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


def set_aside(path: Path) -> None:
    """Rename `name.ext`, if it is there, to the first free of `name.1.ext`, `name.2.ext`, …"""
    number = 1
    while path.exists():
        other = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not other.exists():
            path.rename(other)
        number += 1


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def replace(path: Path, text: str) -> None:
    """Write a whole file so that it is either the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    with neighbour.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    neighbour.replace(path)
