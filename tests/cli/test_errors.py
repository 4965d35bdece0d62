"""What is said of an exception: one line where the user can mend it, a trace with the user's own place otherwise."""

import errno
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from cubelet.cli.errors import disk_fault, fault_place, silence_writer_threads, user_message
from cubelet.common.errors import ConfigError, UnreadableFileError


def fault(number, path=None):
    return OSError(number, os.strerror(number), None if path is None else str(path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_is_a_fault_of_writing_also_below_other_errors(number):
    error = ValueError("a number cannot be logged")
    error.__cause__ = fault(number, "runs/a.ckpt")
    assert disk_fault(error).startswith("cannot write to runs/a.ckpt: ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_what_may_be_a_fault_of_reading_is_not_told_as_one_of_writing(number, tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    path.write_text("text")
    assert disk_fault(fault(number)).startswith("a file cannot be read or written")
    assert disk_fault(fault(number, path)).startswith(f"cannot open {path}")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda name, mode: mode != os.R_OK and allowed(name, mode))  # root may all
    assert disk_fault(fault(number, path)).startswith(f"cannot read {path}")
    monkeypatch.setattr(os, "access", lambda name, mode: mode != os.W_OK and allowed(name, mode))
    assert disk_fault(fault(number, path)).startswith(f"cannot write to {path}")
    assert disk_fault(fault(number, tmp_path / "new")).startswith("cannot write to ")


def test_other_errors_and_those_for_the_user_are_no_disk_faults():
    assert disk_fault(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    error = UnreadableFileError("corpus: x cannot be read: Permission denied")
    error.__cause__ = fault(errno.EACCES, "x")
    assert disk_fault(error) is None


def test_the_class_decides_not_the_place():
    outer = RuntimeError("a logger gave up")
    outer.__cause__ = ConfigError("choose another folder")
    assert user_message(outer) == "choose another folder"
    assert user_message(ValueError("x has shape (2, 3)")) is None


def test_a_fault_names_the_innermost_place_outside_the_package_and_its_libraries(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch\n\ndef halve(x):\n    return torch.zeros(2) @ x\n")
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    import torch

    with pytest.raises(RuntimeError) as caught:
        scope["halve"](torch.zeros(3))
    assert fault_place(caught.value) == f"{path}, line 4, in halve"


def test_hooks_of_threads_are_not_nested_by_repeated_calls(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    silence_writer_threads()
    once = threading.excepthook
    silence_writer_threads()
    assert threading.excepthook is once


HALVING = """
    from torch import nn
    from cubelet.models.blocks import ResidualBlock

    class Halving(ResidualBlock):
        def forward(self, x, *arguments, **options):
            x, cost = super().forward(x, *arguments, **options)
            return self.shorten(x), cost

        def shorten(self, x):
            return nn.functional.linear(x[..., ::2], nn.Parameter(x.new_zeros(8, 7)))
"""


@pytest.mark.slow
def test_a_fault_in_ones_own_block_keeps_its_trace_and_ends_with_file_and_line(tmp_path, small):
    (tmp_path / "halving.py").write_text(textwrap.dedent(HALVING))
    command = [sys.executable, "-m", "cubelet", "fit", *small, "--model.block=halving.Halving"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: RuntimeError: ")
    assert last.endswith("(halving.py, line 11, in shorten)")
