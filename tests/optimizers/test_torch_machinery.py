"""The package's optimizers inside torch's own test machinery, where that takes a third-party class.

torch installs `OptimizerInfo` and the generator of its configurations (foreach, fused, tensor learning rates, ...), not
the tests that use them; three of those are written out here. The machinery imports `expecttest`.
"""

import copy

import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, MaxFactor, SimpleFAM

pytest.importorskip("expecttest")
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
)


def infos():
    """The package's optimizers as torch's own test machinery sees them, with every implementation it would try."""

    def inputs(device, dtype=None):
        return [
            OptimizerInput(params=None, kwargs={}, desc="default"),
            OptimizerInput(params=None, kwargs={"lr": 0.01}, desc="lr"),
            OptimizerInput(params=None, kwargs={"lr": 0.01, "weight_decay": 0.1}, desc="decay"),
            OptimizerInput(params=None, kwargs={"lr": 0.01, "weight_decay": 0.1, "maximize": True}, desc="maximize"),
            OptimizerInput(params=None, kwargs={"lr": torch.tensor(0.01)}, desc="Tensor lr"),
            OptimizerInput(params=None, kwargs={"lr": 0.01, "foreach": False}, desc="reference"),
        ]

    for cls, implementations in (
        (FAM, ("foreach", "fused")),
        (SimpleFAM, ("foreach", "fused")),
        (MaxFactor, ("foreach",)),
    ):
        yield OptimizerInfo(
            cls, optim_inputs_func=inputs, supported_impls=implementations, supports_fused_on=("cpu",),
            has_capturable_arg=False, supports_complex=cls is not MaxFactor,
        )  # fmt: skip


@pytest.mark.parametrize("info", list(infos()), ids=lambda info: info.optim_cls.__name__)
def test_torchs_own_configurations_go_the_right_way(info):
    """torch's forloop_goes_right_direction, over all its configurations and learning rate schedulers."""
    configurations = _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info)
    assert len(configurations) >= (6 if info.optim_cls is MaxFactor else 12)
    for configuration in configurations:
        for schedulers in ([], *info.scheduler_inputs):
            generator = torch.Generator().manual_seed(0)
            weight = nn.Parameter(torch.randn(10, 5, generator=generator))
            bias = nn.Parameter(torch.randn(10, generator=generator))
            x = torch.randn(5, generator=generator)
            optimizer = info.optim_cls([weight, bias], **copy.deepcopy(configuration.kwargs))
            schedules = [schedule(optimizer) for schedule in schedulers]

            def loss_of(weight=weight, bias=bias, x=x):
                return (weight.mv(x) + bias).pow(2).sum()

            first = loss_of().item()
            for _ in range(20):
                optimizer.zero_grad()
                loss = loss_of()
                loss.backward()
                optimizer.step()
                for schedule in schedules:
                    schedule.step(loss.detach()) if type(schedule).__name__ == "ReduceLROnPlateau" else schedule.step()
            rises = configuration.kwargs.get("maximize", False)
            assert (loss_of().item() > first) == rises, configuration


@pytest.mark.parametrize("info", list(infos()), ids=lambda info: info.optim_cls.__name__)
def test_no_gradients_and_zero_gradients_change_nothing(info):
    """torch's step_is_noop_when_params_have_no_grad and step_is_noop_for_zero_grads."""
    for configuration in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info):
        for gradient in (None, torch.zeros(10, 40)):
            weight = nn.Parameter(torch.randn(10, 40, generator=torch.Generator().manual_seed(0)))
            before = weight.detach().clone()
            optimizer = info.optim_cls([weight], **{**copy.deepcopy(configuration.kwargs), "weight_decay": 0.0})
            weight.grad = gradient
            for _ in range(3):
                optimizer.step()
            assert torch.equal(weight, before), configuration
