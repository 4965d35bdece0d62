"""What a comparison shows while it runs: a live table on a terminal, otherwise a line for each finished run."""

import math
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .processes import Progress, RunResult, read_progress
from .runs import Run


class Display:
    """Shows how far an experiment is. A context manager; `update` is a `ProgressCallback`.

    Args:
        title: of the experiment.
        root: folder of its runs.
        console: where to.
    """

    def __init__(self, title: str, root: Path, console: Console) -> None:
        self.title, self.root, self.console, self.stage = title, root, console, ""
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def announce(self, stage: str) -> None:
        """A new stage begins."""
        self.stage = stage
        if self._live is None:
            self.console.print(f"{self.title}: {stage}", highlight=False)

    def update(self, progress: Progress, result: RunResult | None) -> None:
        """Show `progress`, and the run that has just ended."""
        left = progress.seconds_left()
        remaining = "" if math.isnan(left) else f", about {format_time(left)} left"
        head = f"{self.title}: {self.stage}, {progress.done}/{progress.total} runs{remaining}"
        if result is not None and (self._live is None or result.fault):
            end = result.fault or f"{result.loss:.4f}"
            line = f"{head}  {result.run.variant} {_seed_of(result.run)}: {end}"
            self.console.print(line, highlight=False, markup=False)
        if self._live is not None:
            table = Table(title=head, title_justify="left", box=None, show_header=False)
            for run in progress.active:
                at = read_progress(run, self.root)
                where = f"{at['step']}/{at['of']}  loss {at['loss']:.4f}" if at else "…"
                table.add_row(run.variant, _seed_of(run), where)
            self._live.update(table)


def _seed_of(run: Run) -> str:
    return f"seed {run.seed}" + ("" if run.purpose == "test" else f" ({run.purpose})")


def format_time(seconds: float) -> str:
    """Seconds as a person would say them: 40 s, 12 min, 2.5 h."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
