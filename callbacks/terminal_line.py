"""One line of text that renews itself, on whatever output there is.

- On a terminal the line is overwritten in place, cut to the width, so that it never wraps; what others print meanwhile
  stands above it.
- In a notebook the same, without control sequences.
- Anywhere else (a file, a pipe, CI, `TERM=dumb`) plain lines, at most one in a while, each flushed.
"""

import logging
import os
import shutil
import sys
import time
from typing import Any, TextIO

CLEAR = "\r\x1b[K"
CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "BUILDKITE")
Part = tuple[int, str]  # (how soon it is left out where there is no room: 0 never, larger sooner; text)


def output_kind(stream: Any) -> str:
    """Return "terminal", "notebook" or "plain" for an output stream."""
    if "ipykernel" in sys.modules and type(stream).__module__.startswith("ipykernel"):
        return "notebook"
    is_terminal = bool(getattr(stream, "isatty", lambda: False)())
    if not is_terminal or os.environ.get("TERM") == "dumb" or any(os.environ.get(name) for name in CI_VARIABLES):
        return "plain"
    return "terminal"


def fit_parts(parts: list[Part], width: int) -> str:
    """Return the texts joined by two spaces, the least important left out until they fit `width`.

    Example:
        >>> fit_parts([(0, "step 5/10"), (2, "0:03 left"), (1, "loss 2.1")], 20)
        'step 5/10  loss 2.1'
    """
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return "  ".join(text for _, text in kept)[: max(width, 0)]


class TerminalLine:
    """A line that shows the latest state.

    Args:
        stream: where to write; None for `sys.stdout` at the time of `open`.
        plain_seconds: least time between two lines where lines cannot be overwritten.
        refresh_seconds: least time between two states where they can.

    Example:
        >>> line = TerminalLine(plain_seconds=30)
    """

    def __init__(self, stream: TextIO | None = None, plain_seconds: float = 10.0, refresh_seconds: float = 0.2) -> None:
        self._given = stream
        self._plain_seconds, self._refresh_seconds = plain_seconds, refresh_seconds
        self._stream: Any = None
        self.kind = "plain"
        self._shown = ""  # what stands on the line now
        self._last = -float("inf")
        self._guards: list[tuple[Any, Any]] = []

    def open(self) -> None:
        """Find out what kind of output there is, and make others' output stand above the line."""
        self._stream = self._given or sys.stdout
        self.kind = output_kind(self._stream)
        self._last = -float("inf")
        if self.kind == "terminal" and not self._guards:
            self._guard()

    def close(self) -> None:
        """End the line, so that what comes next stands below it."""
        if self._shown:
            self._write("\n")
            self._shown = ""
        while self._guards:
            restore, value = self._guards.pop()
            restore(value)

    def is_due(self) -> bool:
        """Return whether enough time passed to show another state."""
        wait = self._plain_seconds if self.kind == "plain" else self._refresh_seconds
        return time.monotonic() - self._last >= wait

    def show(self, parts: list[Part]) -> None:
        """Show a state now."""
        self._last = time.monotonic()
        if self.kind == "plain":
            self._write("  ".join(text for _, text in parts) + "\n")
            return
        # One column less: some terminals wrap when the last one is written.
        text = fit_parts(parts, (100 if self.kind == "notebook" else shutil.get_terminal_size().columns) - 1)
        start = CLEAR if self.kind == "terminal" else "\r"
        padding = " " * max(0, len(self._shown) - len(text)) if self.kind == "notebook" else ""
        self._write(start + text + padding)
        self._shown = text

    def clear(self) -> None:
        """Take the line away until the next `show`."""
        if self._shown:
            self._write(CLEAR if self.kind == "terminal" else "\n")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe or terminal must not end a run
            self.kind, self._shown = "plain", ""

    def _guard(self) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not isinstance(stream, _Guard):
                setattr(sys, name, _Guard(stream, self))
                self._guards.append((lambda value, name=name: setattr(sys, name, value), stream))
        for logger in [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
            for handler in logger.handlers:
                stream = vars(handler).get("stream")  # a handler that looks up sys.stderr anew needs no help
                if isinstance(handler, logging.StreamHandler) and getattr(stream, "isatty", lambda: False)():
                    handler.setStream(_Guard(stream, self))
                    self._guards.append((handler.setStream, stream))


class _Guard:
    """A stream that takes the line away before something else is written."""

    def __init__(self, stream: Any, line: TerminalLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.clear()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
