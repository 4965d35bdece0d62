"""A line that renews itself and never wraps; plain lines where it cannot."""

import io
import logging
import sys

import pytest

from cubelet.callbacks.terminal_line import TerminalLine, fit_parts, output_kind
from tests.reference.terminal import run_in_terminal

PARTS = [(0, "step 1/10"), (3, "0:10 left"), (1, "loss 2.000")]


def test_the_least_important_part_is_left_out_first():
    assert fit_parts(PARTS, 100) == "step 1/10  0:10 left  loss 2.000"
    assert fit_parts(PARTS, 31) == "step 1/10  loss 2.000"
    assert fit_parts(PARTS, 20) == "step 1/10"
    assert fit_parts(PARTS, 4) == "step"


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_a_terminal_that_cannot_or_should_not_gets_plain_lines(variable, value, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output_kind(Terminal()) == "terminal"
    monkeypatch.setenv(variable, value)
    assert output_kind(Terminal()) == "plain"
    assert output_kind(io.StringIO()) == "plain"


def test_plain_lines_come_whole_and_flushed_at_their_rate():
    class Flushed(io.StringIO):
        flushes = 0

        def flush(self):
            self.flushes += 1

    stream = Flushed()
    line = TerminalLine(stream, plain_seconds=1000)
    line.open()
    assert line.is_due()
    line.show(PARTS)
    assert not line.is_due()
    line.close()
    assert stream.getvalue() == "step 1/10  0:10 left  loss 2.000\n"
    assert stream.flushes == 1


def test_a_notebook_overwrites_without_control_sequences(monkeypatch):
    Stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    stream = Stream()
    line = TerminalLine(stream)
    line.open()
    line.show(PARTS)
    line.show(PARTS[:1])
    line.close()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith("\rstep 1/10" + " " * 23 + "\n")


def test_what_others_write_stands_above_the_line():
    def talk():
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("talk").addHandler(handler)
        usual = sys.stdout
        line = TerminalLine()
        line.open()
        line.show(PARTS)
        print("a print")
        line.show(PARTS)
        logging.getLogger("talk").warning("a warning")
        line.show(PARTS[:1])
        line.close()
        assert sys.stdout is usual
        assert handler.stream is sys.stderr

    output = run_in_terminal(talk, 80)
    state = "\r\x1b[Kstep 1/10  0:10 left  loss 2.000"
    assert output == f"{state}\r\x1b[Ka print\r\n{state}\r\x1b[Ka warning\r\n\r\x1b[Kstep 1/10\r\n"


def test_a_closed_pipe_ends_no_run():
    stream = io.StringIO()
    line = TerminalLine(stream)
    line.open()
    stream.close()
    line.show(PARTS)
    line.close()
