"""The GPU benchmark itself: it runs where there is no GPU, and says so where it would have to measure one."""

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import Clock, optimizer_rows


def test_without_a_gpu_it_says_so_and_ends_well():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ended = subprocess.run([sys.executable, "benchmarks/gpu.py", "--test"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith("No GPU here: nothing was tested or measured")


def test_rows_are_ratios_of_interleaved_medians(monkeypatch):
    clock, took = Clock(torch.device("cpu")), iter([9, 9, 9, 9, 9, 9, 1, 4, 3, 8, 2, 6])
    monkeypatch.setattr(clock, "time", lambda call: next(took))
    assert clock.rows({"floor": print, "ours": print}, "floor", rounds=3) == [("ours", "floor", 3.0, 6)]


def test_optimizers_and_their_settings_exist():
    rows = optimizer_rows(Clock(torch.device("cpu")), 1, dims=16, layers=1, heads=2)
    assert [name for name, *_ in rows] == ["FAM", "FAM, capturable", "FAM over adamw"]
