"""A checkpoint is replaced wholly or not at all."""

import errno
import os
import warnings

import pytest
import torch

from cubelet.callbacks import checkpoint_io
from cubelet.callbacks.checkpoint_io import AtomicCheckpointIO
from cubelet.common.files import write_atomic


def failing(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_at_any_place_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "last.ckpt"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, where, failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", os.fstat(fd).st_size)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomic(tmp_path / "a.ckpt", b"12345")
    assert calls[:2] == [("fsync", 5), "replace"]
    assert calls[2][0] == "fsync"  # the folder


def test_failures_are_warned_of_once_and_end(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "deep/last.ckpt"
    with monkeypatch.context() as full:
        full.setattr(checkpoint_io, "write_atomic", failing(errno.ENOSPC))
        with pytest.warns(UserWarning, match=r"last.ckpt \(0.0 MiB\): No space left on device; none was written yet"):
            io.save_checkpoint({"a": torch.ones(2)}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            io.save_checkpoint({"a": torch.ones(2)}, path)
        assert io.failure is not None
    io.save_checkpoint({"a": torch.ones(2)}, path)
    assert io.failure is None
    assert torch.equal(io.load_checkpoint(path)["a"], torch.ones(2))
    with monkeypatch.context() as full:
        full.setattr(checkpoint_io, "write_atomic", failing(errno.EROFS))
        with pytest.warns(UserWarning, match="the one before is untouched"):
            io.save_checkpoint({"a": torch.zeros(2)}, path)
    assert torch.equal(io.load_checkpoint(path)["a"], torch.ones(2))
