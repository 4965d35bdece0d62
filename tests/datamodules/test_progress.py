"""The progress bar shows on a terminal, with the time that is left, and nowhere else."""

import io
import sys
import time

import pytest

from cubelet.datamodules import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_with_the_time_left_on_a_terminal_only(monkeypatch, stream):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.progress_bar("reading books", 10_000_000) as advance:
        for _ in range(5):
            time.sleep(0.06)
            advance(1_000_000)
    shown = sys.stderr.getvalue()
    if stream is Terminal:
        assert "reading books" in shown
        assert "/10.0 MB" in shown
        assert "0:00:0" in shown
    else:
        assert shown == ""


def test_short_work_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress_bar("reading") as advance:
        advance(5)
    assert "reading" not in sys.stderr.getvalue()
