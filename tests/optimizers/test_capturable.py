import numpy as np
import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM
from tests.reference.optimizers import low_rank_gradients

SHAPES = [(24, 64), (300,), (7,), (0, 2), ()]


def end(axis, base, dtype, drop, **settings):
    rng = np.random.default_rng(0)
    params = [nn.Parameter(torch.tensor(rng.standard_normal(shape), dtype=dtype)) for shape in SHAPES]
    optimizer = FAM(params, 0.02, axis=axis, base=base, rule="absolute", start_step=30, analyse_every=4, **settings)
    for step, grads in enumerate(zip(*[low_rank_gradients(shape, 120, 0.9) for shape in SHAPES], strict=True)):
        for number, (param, grad) in enumerate(zip(params, grads, strict=True)):
            param.grad = None if drop and step % 5 == number else torch.tensor(grad).to(dtype)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("base", ["momentum", "adamw"])
@pytest.mark.parametrize("axis", ["index", "time"])
def test_equals_the_plain_step(axis, base, drop):
    for settings in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": False, "maximize": True}):
        want, plain = end(axis, base, torch.float32, drop, foreach=False, **settings)
        got, captured = end(axis, base, torch.float32, drop, capturable=True, **settings)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=3e-6, rtol=1e-5)
        for one, other in zip(captured.spectrum_summary(), plain.spectrum_summary(), strict=True):
            assert one["alpha"] == pytest.approx(other["alpha"])
            assert one["alpha"] > 0.94
            assert one["step"] == other["step"]
            np.testing.assert_allclose(one["bands"], other["bands"], atol=1e-6)


@pytest.mark.parametrize("base", ["momentum", "adamw", "muon"])
@pytest.mark.parametrize("more", [{}, {"nesterov": True, "rule": "listen"}, {"nu": 0.7, "rule": "listen"}])
def test_shares_of_fresh_gradient_are_those_of_the_plain_step(base, more):
    """ν from the resonance, Nesterov's and a constant."""
    ends = []
    for path in ({"foreach": False}, {"capturable": True}):
        rng = np.random.default_rng(0)
        params = [nn.Parameter(torch.tensor(rng.standard_normal(shape)).float()) for shape in SHAPES]
        settings = {"base": base, "axis": "time", "start_step": 24, "analyse_every": 4, **more, **path}
        optimizer = FAM(params, 1e-3, 0.9, **settings)
        for step in range(60):
            for param in params:  # a resonance with a period of 8 steps
                wave = np.cos(2 * np.pi * step / 8 + np.arange(param.numel())).reshape(param.shape)
                param.grad = torch.tensor(wave + 0.3 * rng.standard_normal(param.shape)).float()
            optimizer.step()
        ends.append((params, optimizer.spectrum_summary()))
    (want, plain), (got, captured) = ends
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3 if base == "muon" else 3e-6, rtol=1e-5)
    shares = [row["nu"] for row in plain]
    assert [row["nu"] for row in captured] == pytest.approx(shares)
    assert all(share < 0.96 for share in shares)


def test_rate_may_be_a_tensor_that_a_schedule_fills_and_state_survives_loading():
    params, optimizer = end("index", "adamw", torch.bfloat16, False, capturable=True)
    other = FAM([nn.Parameter(param.detach().clone()) for param in params], torch.tensor(9.0), capturable=True)
    other.load_state_dict(optimizer.state_dict())
    for kind in (optimizer, other):
        kind.param_groups[0]["lr"] = torch.tensor(0.02)
        for param in kind.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        kind.step()
    for a, b in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)


def test_groups_must_agree():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = FAM([{"params": [weights[0]], "capturable": True}, {"params": [weights[1]]}])
    with pytest.raises(ValueError, match="capturable must be the same"):
        optimizer.step()
