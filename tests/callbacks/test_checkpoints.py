"""Finding checkpoints: the newest valid one, and clear words where there is none."""

import os

import pytest
import torch

from cubelet.callbacks.checkpoints import is_readable, newest_checkpoint, resolve_checkpoint


def save(path, age):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.randn(1000)}}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_last_is_the_newest_that_can_be_read(tmp_path):
    old, new = save(tmp_path / "a/checkpoints/last.ckpt", 20), save(tmp_path / "b/checkpoints/last.ckpt", 10)
    assert newest_checkpoint(tmp_path) == new
    new.write_bytes(new.read_bytes()[:700])  # cut off by a kill
    os.utime(new, (1e9, 1e9))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resolve_checkpoint("last", tmp_path) == str(old)


def test_what_is_no_checkpoint(tmp_path):
    empty, other = tmp_path / "empty.ckpt", tmp_path / "other.ckpt"
    empty.touch()
    torch.save([1, 2], other)
    assert not is_readable(empty)
    assert not is_readable(other)
    assert not is_readable(tmp_path / "missing.ckpt")
    assert is_readable(save(tmp_path / "good.ckpt", 0))


def test_clear_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint under"):
        resolve_checkpoint("last", tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resolve_checkpoint("nothere.ckpt", tmp_path)
    assert resolve_checkpoint("hpc", tmp_path) is None
