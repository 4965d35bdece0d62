"""Silence about what nobody can change, without losing warnings that matter."""

import pickle
import warnings

import pytest
import torch

from cubelet.cli.quiet import quiet_dependencies, warn_slow_bf16
from cubelet.cli.run_start import QuietProcesses


def test_quiet_only_about_what_nobody_can_change():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_dependencies()
        warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.")
        warnings.warn("the loss is going up")
    assert [str(w.message) for w in caught] == ["the loss is going up"]


def test_a_process_that_unpickles_the_trainer_is_quiet_too():
    callbacks = pickle.dumps([QuietProcesses()])  # as a spawned rank gets them
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert isinstance(pickle.loads(callbacks)[0], QuietProcesses)
        warnings.warn("It is recommended to use `self.log('val_loss', ..., sync_dist=True)` when logging")
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


def test_repeated_calls_do_not_nest_the_format_of_warnings(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quiet_dependencies()
    once = warnings.formatwarning
    quiet_dependencies()
    assert warnings.formatwarning is once
