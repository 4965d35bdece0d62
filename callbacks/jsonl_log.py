"""JSON-lines files that survive a kill and fit a resumed run exactly: no line lost, none twice.

Lines are handed to the operating system in one write per call, so a killed process leaves at most one torn last line.
On resume the lines past the resumed step, and a torn one, are cut off by an atomic rewrite. A run that starts anew
never touches what an earlier one left in the same place: that is renamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from cubelet.common.files import rotate_backup, write_atomic

from .reporting import stops_writing


class ResumableJSONL:
    """Appends records with a `step` to a file.

    Args:
        path: of the file; its folder is made when the first record comes.
        step: records of later steps, left by a run that went on past the checkpoint now resumed, are removed. At 0, a
            new run, an existing file is renamed to `name.1.jsonl`, `name.2.jsonl`, …
        earlier: file of the run that is resumed, when it lies in another folder: its records up to `step` come first.

    Example:
        >>> log = ResumableJSONL(Path("run/spectra.jsonl"), step=0)
        >>> log.append([{"step": 1, "alpha": 0.9}])  # doctest: +SKIP
    """

    def __init__(self, path: Path, step: int, earlier: Path | None = None) -> None:
        self.path = path
        self._file: TextIO | None = None
        if step == 0:
            rotate_backup(path)
        source = path if path.exists() else earlier
        if source is not None and source.exists():
            kept = [line for line in source.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_atomic(path, "".join(f"{line}\n" for line in kept))

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
    """Step of a record; that of a torn line is beyond all others."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def open_log(owner: object, path: Path, step: int, earlier: str | None) -> ResumableJSONL | None:
    """Return a log of `owner`, a callback, that goes on behind `step`; None, and said, where it cannot be written.

    Args:
        earlier: path of the log before a resume, from the callback's state.
    """
    try:
        return ResumableJSONL(path, step, Path(earlier) if earlier else None)
    except OSError as error:
        stops_writing(owner, path, error)
        return None
