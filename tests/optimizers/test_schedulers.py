import copy
import itertools
import math

import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, WarmupCosine
from cubelet.optimizers.schedulers import warmup_decay


def rates(steps, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosine(optimizer, **settings)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_exact_values_at_the_corners_and_past_the_end():
    seen = rates(60, warmup=10, decay_start=20, total=40, eta_min=0.1)
    assert seen[:11] == pytest.approx([2 * (t + 1) / 11 for t in range(11)])  # no step at rate 0
    assert seen[10:21] == [2.0] * 11
    assert seen[30] == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert seen[25] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert seen[40:] == pytest.approx([0.2] * 21)


def test_linear_shape_falls_evenly_to_zero():
    seen = rates(12, warmup=2, total=10, shape="linear")
    assert seen == pytest.approx([2 / 3, 4 / 3, *[2 * (1 - t / 8) for t in range(9)], 0, 0])


@pytest.mark.parametrize("shape", ["cosine", "linear", "sqrt"])
def test_phases_of_zero_length(shape):
    assert rates(3, warmup=0, total=0, eta_min=0.5, shape=shape) == [1.0] * 4
    assert rates(2, warmup=0, total=2, shape=shape)[0] == 2.0
    assert rates(6, warmup=0, decay_start=3, total=3, eta_min=0.25, shape=shape) == [2.0] * 3 + [0.5] * 4
    assert rates(5, warmup=4, total=4, shape=shape) == pytest.approx([0.4, 0.8, 1.2, 1.6, 0, 0])
    assert rates(5, warmup=2, decay_start=4, total=5, shape=shape)[2:6] == pytest.approx([2, 2, 2, 0])


def test_a_decay_by_fraction_is_the_end_of_the_run_and_sqrt_falls_as_one_minus_the_root():
    seen = rates(100, warmup=10, total=100, decay_fraction=0.2, shape="sqrt")
    assert seen[10:81] == [2.0] * 71
    assert seen[85] == pytest.approx(2 * (1 - math.sqrt(0.25)))
    assert seen[100] == 0
    assert rates(20, warmup=8, total=10, decay_fraction=0.9)[8] == 2.0  # no decay before the warm-up has ended


def test_never_rises_after_the_warm_up():
    for shape in ("cosine", "linear", "sqrt"):
        values = [warmup_decay(t, 5, 50, 20, 0.1, shape) for t in range(200)]
        assert all(a >= b for a, b in itertools.pairwise(values[5:]))
        assert min(values[5:]) == pytest.approx(0.1)


def test_epochs_counted_in_steps_equal_epochs_at_their_starts():
    by_epoch = rates(10, warmup=2, total=8, eta_min=0.1)
    by_step = rates(70, warmup=2, total=8, eta_min=0.1, steps_per_epoch=7)
    assert by_step[14::7] == pytest.approx(by_epoch[2:])
    assert by_step[:15] == pytest.approx([2 * (t + 1) / 15 for t in range(15)])  # rises with every step, from the first


def test_groups_keep_their_ratios_and_tensor_rates_are_filled_in_place():
    rate = torch.tensor(1.0)
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = FAM([{"params": [weights[0]], "lr": rate}, {"params": [weights[1]], "lr": 0.8}])
    scheduler = WarmupCosine(optimizer, warmup=4, total=8)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.8)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.64)


def test_state_dict_goes_on_where_it_stopped_and_is_plain():
    def make():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupCosine(optimizer, warmup=3, total=20, eta_min=0.2, shape="linear")

    optimizer, scheduler = make()
    for _ in range(9):
        optimizer.step()
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    assert all(isinstance(v, int | float | str | bool | list | type(None)) for v in saved[1].values())
    other_optimizer, other = make()
    other.load_state_dict(saved[1])
    other_optimizer.load_state_dict(saved[0])
    for _ in range(15):
        assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for kind in (optimizer, scheduler, other_optimizer, other):
            kind.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "total is not given"),
        ({"warmup": -1, "total": 5}, "0 <= warmup <= decay_start <= total, got -1, -1, 5"),
        ({"warmup": 6, "total": 5}, "got 6, 6, 5"),
        ({"warmup": 2, "decay_start": 1, "total": 5}, "got 2, 1, 5"),
        ({"total": 5, "decay_fraction": 0.2, "decay_start": 3}, "without decay_start"),
        ({"total": 5, "decay_fraction": 1.2}, "decay_fraction 1.2 must be between 0 and 1"),
        ({"total": 5, "eta_min": 1.5}, "eta_min is a share"),
        ({"total": 5, "shape": "square"}, "shape 'square' is unknown; choose one of cosine, linear, sqrt"),
        ({"total": 5, "steps_per_epoch": 0}, "steps_per_epoch 0 must be at least 1"),
    ],
)
def test_silly_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **settings)
