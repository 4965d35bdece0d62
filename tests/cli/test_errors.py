"""Short errors out of long ones; quiet dependencies without losing warnings that matter."""

import errno
import os
import warnings

import pytest
import torch

from cubelet.cli.errors import deepest, did_you_mean, disk_fault, quiet_dependencies, raised_here, warn_slow_bf16
from cubelet.cli.main import main
from cubelet.common.errors import UnreadableFileError
from cubelet.models.decoder import Decoder

UNION = """Parser key "model.rotary":

  - Expected a path but RoPEE either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [collections.abc.Callable[[int, int], torch.nn.modules.module.Module], <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: RoPEE
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: RoPEE"""


def test_the_innermost_complaint_is_told():
    assert deepest(UNION) == "model.rotary: Expected a dot import path string: RoPEE"
    told = deepest("Parser key \"a.b\":\n  Expected a <class 'int'>. Got value: x")
    assert told == "a.b: Expected a int. Got value: x"
    assert deepest("unrecognized arguments: --x=1") == "unrecognized arguments: --x=1"


def test_suggestions():
    assert did_you_mean(UNION, []) == "did you mean cubelet.models.rotary.RoPE?"
    keys = ["model.dims", "model.heads"]
    assert did_you_mean("unrecognized arguments: --model.dimz=3", keys) == "did you mean model.dims?"
    assert did_you_mean("unrecognized arguments: --zzz", ["model.dims"]) == ""


def test_only_errors_this_package_raises_are_messages():
    for make, expected in ((lambda: Decoder(5, 30, 1, 4), True), (lambda: torch.zeros(2) @ torch.zeros(3), False)):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            make()
        assert raised_here(caught.value) is expected


def test_quiet_only_about_what_nobody_can_change():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_dependencies()
        warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.")
        warnings.warn("the loss is going up")
    assert [str(w.message) for w in caught] == ["the loss is going up"]


def test_slow_bf16_is_warned_of_once_where_it_is_slow(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.warns(UserWarning, match="18 times slower"):
        warn_slow_bf16("bf16-mixed", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_slow_bf16("32-true", "cpu")
        warn_slow_bf16("bf16-mixed", "cuda")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        warn_slow_bf16("bf16-mixed", "cpu")


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


def test_a_config_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.yaml").symlink_to("/proc/self/mem")
    with pytest.raises(SystemExit, match=r"error: config .*a\.yaml cannot be read: Input/output error"):
        main(["fit", "--config", str(tmp_path / "a.yaml")])
