"""With a constant α the bases are torch's own optimizers; and what of torch's kernels is worked around here."""

import copy

import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, parameter_groups
from cubelet.optimizers.updates import AdamW, Momentum, scale_, working_dtype

PATHS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def pair(make, steps=60, dtype=torch.float32):
    """The parameters after a run of FAM without adaptation, and after a run of another optimizer."""
    ends = []
    for build in make:
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((30, 20), (7,), ())]
        optimizer = build(params)
        for _ in range(steps):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            optimizer.step()
        ends.append([param.detach() for param in params])
    return ends


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_base_with_constant_alpha_is_torchs_adamw(path, decay):
    ours, theirs = pair([
        lambda p: FAM(p, lr=0.01, base="adamw", alpha=0.8, beta2=0.98, eps=1e-6, weight_decay=decay, **path),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.98), eps=1e-6, weight_decay=decay),
    ])  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_base_with_coupled_decay_is_torchs_adam(path, maximize):
    settings = {"lr": 0.01, "weight_decay": 0.1, "maximize": maximize}
    ours, theirs = pair([
        lambda p: FAM(p, base="adamw", decoupled_weight_decay=False, **settings, **path),
        lambda p: torch.optim.Adam(p, **settings),
    ])  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_momentum_base_is_sgd_with_dampening_from_a_zero_buffer(path):
    def sgd(params):
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.8, dampening=0.8, weight_decay=0.05)
        for param in params:  # torch's first step would set the buffer to the gradient, undamped
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
        return optimizer

    ours, theirs = pair(
        [
            lambda p: FAM(
                p, lr=0.1, alpha=0.8, base="momentum", weight_decay=0.05, decoupled_weight_decay=False, **path
            ),
            sgd,
        ]
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_bias_correction_uses_the_product_of_the_alphas_that_were_used(path):
    """A constant gradient: rightly corrected, the step is lr·sign(g) whatever α' was; here it is 0.9, then 0.95."""
    wave = (1 - 2.0 * (torch.arange(64) % 2)).expand(40, 64).contiguous()
    weight = nn.Parameter(torch.zeros(40, 64))
    optimizer = FAM([weight], lr=1.0, base="adamw", start_step=3, analyse_every=1, **path)
    for step in range(1, 12):
        before = weight.detach().clone()
        weight.grad = wave.clone()
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), wave, atol=1e-5, rtol=1e-5)
        assert optimizer.state[weight]["alpha"].item() == pytest.approx(0.9 if step <= 3 else 0.95)
    assert optimizer.state[weight]["beta1_product"].item() == pytest.approx(0.9**3 * 0.95**8, rel=1e-6)


def test_second_moment_of_half_types_keeps_moving():
    """With bfloat16 state, v of a constant gradient stops near a quarter of g²."""
    weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))
    optimizer = FAM([weight], base="adamw")
    for _ in range(1500):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    second = optimizer.state[weight]["exp_avg_sq"]
    assert second.dtype == torch.float32
    torch.testing.assert_close(second, torch.full((8, 8), 1 - 0.999**1500), atol=1e-4, rtol=1e-4)
    assert optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", [*PATHS, {}])
def test_half_types_on_the_cpu_take_a_right_path(dtype, path):
    """torch 2.13's fused SGD is off by a third here; asking for it must not bring that back."""
    weight = nn.Parameter(torch.zeros(64, 48, dtype=dtype))
    optimizer = FAM([weight], lr=0.5, base="momentum", **path)
    m = w = torch.zeros(64, 48, dtype=torch.float64)
    for step in range(5):
        weight.grad = torch.randn(64, 48, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.step()
        m = 0.9 * m + 0.1 * weight.grad.double()
        w = w - 0.5 * m
    torch.testing.assert_close(weight.detach().double(), w, atol=8 * torch.finfo(dtype).eps, rtol=0.0)
    assert not Momentum().can_fuse(dtype, weight.device)
    assert not AdamW().can_fuse(dtype, weight.device)


def test_scaling_half_types_uses_the_exact_factor():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        x = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) + 1
        y = x.clone()
        scale_([y], 0.9)
        torch.testing.assert_close(y.double(), x.double() * 0.9, rtol=0.75 * torch.finfo(dtype).eps, atol=0)
    assert working_dtype(torch.bfloat16) == working_dtype(torch.float32) == torch.float32
    assert working_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"capturable": True}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_base_is_torchs_muon_for_matrices(path, decay, dtype):
    """Tall, wide and square ones, several of a shape (which go through the steps together)."""
    shapes = [(30, 20), (20, 30), (16, 16), (30, 20), (1, 8)]
    ends = []
    for make in (
        lambda p: FAM(p, 0.01, base="muon", nesterov=True, muon_alpha=0.9, weight_decay=decay, min_size=10**9, **path),
        lambda p: torch.optim.Muon(p, 0.01, decay, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    ):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
        optimizer = make(params)
        for _ in range(20):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            optimizer.step()
        ends.append([param.detach() for param in params])
    # Rounding in bfloat16 differs between one product and several together; a step is 0.01·0.2·√30 = 0.011 at most.
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3 if dtype == torch.float32 else 3e-2, rtol=2e-2)


def test_muon_leaves_all_else_to_adamw_with_one_state_dict_and_one_schedule():
    model = nn.ModuleDict({"e": nn.Embedding(9, 8), "l": nn.Linear(8, 8), "n": nn.LayerNorm(8)})
    twin = copy.deepcopy(model)
    optimizer = FAM(parameter_groups(model, 0.01, 0.1), base="muon", nesterov=True, min_size=10**9)
    other = FAM(parameter_groups(twin, 0.01, 0.1), nesterov=True, min_size=10**9)
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 0.5) for each in (optimizer, other)]
    for _ in range(5):
        for param, same in zip(model.parameters(), twin.parameters(), strict=True):
            param.grad = torch.randn_like(param)
            same.grad = param.grad.clone()
        optimizer.step()
        other.step()
        for schedule in schedules:
            schedule.step()
    for (name, param), same in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(param, same) == (name != "l.weight")
    assert set(optimizer.state[model["l"].weight]) == {"exp_avg", "step"}
    fresh = FAM(parameter_groups(model, 0.01, 0.1), base="muon", nesterov=True, min_size=10**9)
    fresh.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("path", PATHS)
def test_nu_in_adamw_is_quasi_hyperbolic_adam(path):
    """u = ν·m̂ + (1−ν)·g over √v̂, from https://arxiv.org/abs/1810.06801 written out."""
    weight = nn.Parameter(torch.ones(30, 20))
    optimizer = FAM([weight], 0.01, 0.9, nu=0.7, beta2=0.99, min_size=10**9, **path)
    w = torch.ones(30, 20, dtype=torch.float64)
    m = v = torch.zeros(30, 20, dtype=torch.float64)
    for step in range(1, 60):
        weight.grad = torch.randn(30, 20, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        g = weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        u = 0.7 * m / (1 - 0.9**step) + 0.3 * g
        w = w - 0.01 * u / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach().double(), w, atol=2e-6, rtol=1e-5)
