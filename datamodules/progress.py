"""A progress bar for work that takes seconds to hours, on a terminal only, with the time that is left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

PATIENCE = 1.0  # seconds before anything is shown


@contextmanager
def progress_bar(label: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
    """Show a bar while the context lasts, if it lasts long enough and the error stream is a terminal.

    Args:
        label: what is going on.
        total: characters to come, where somebody knows.

    Yields:
        A function that is told the number of characters done since its last call.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Bars(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    task = bars.add_task(label, total=total)
    begun, shown = time.monotonic(), False

    def advance(characters: int) -> None:
        nonlocal shown
        bars.advance(task, characters)
        if not shown and time.monotonic() - begun > PATIENCE:
            shown = True
            bars.start()

    try:
        yield advance
    finally:
        bars.stop()
