"""FAM against a slow reference, over many steps, with the adaptive branch really running."""

import numpy as np
import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM
from cubelet.optimizers.momentum_rules import white_bins
from cubelet.optimizers.spectral_momentum import choose_nu
from tests.reference.optimizers import ReferenceFAM, low_rank_gradients

SHAPES = [(40, 80), (12, 3, 5, 5), (300,), (7,), ()]
SETTINGS = {
    "momentum": {"base": "momentum", "lr": 0.05},
    "adamw": {"base": "adamw", "lr": 0.01},
    "maxfactor": {"base": "maxfactor", "lr": 0.02},
}
KINDS = [("default", 8), ("conv", 10), ("attention", 12), ("embedding", 8)]


def gradients(steps, frequency, shapes=SHAPES):
    return list(zip(*[low_rank_gradients(s, steps, frequency, seed=i) for i, s in enumerate(shapes)], strict=True))


def follow(settings, steps, frequency, dtype=torch.float32, shapes=SHAPES, reference=True, **path):
    """Runs FAM, and the reference beside it. Returns both sets of weights, and the two lists of α'."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in shapes]
    params = [nn.Parameter(torch.tensor(w, dtype=dtype)) for w in start]
    slow = [ReferenceFAM(w, **settings) for w in start] if reference else []
    optimizer = FAM(params, **settings, **path)
    for step in gradients(steps, frequency, shapes):
        for param, grad in zip(params, step, strict=True):
            param.grad = torch.tensor(grad).to(dtype)
        optimizer.step()
        for tensor, grad in zip(slow, step, strict=False):
            tensor.step(grad)
    alphas = {row["name"]: row["alpha"] for row in optimizer.spectrum_summary()}
    found = [alphas.get(f"group0.{i}", settings.get("alpha", 0.9)) for i in range(len(params))]
    return [p.detach().double().numpy() for p in params], [s.w for s in slow], found, [s.alpha for s in slow]


@pytest.mark.parametrize("frequency", [0.0, 1.0])
@pytest.mark.parametrize(("handler", "n_bands"), KINDS)
@pytest.mark.parametrize("axis", ["index", "time"])
def test_every_handler_and_axis_follows_the_reference(handler, n_bands, axis, frequency):
    settings = {"lr": 0.05, "handler": handler, "n_bands": n_bands, "axis": axis, "start_step": 30, "min_size": 64}
    settings |= {"base": "momentum", "rule": "excess"}
    got, want, alphas, wanted = follow(settings, 120, frequency)
    np.testing.assert_allclose(alphas, wanted, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5)
    if axis == "index" and (frequency == 1.0 or handler == "attention"):
        assert abs(alphas[0] - 0.9) > 0.04  # the adaptive branch ran


@pytest.mark.parametrize("base", SETTINGS)
@pytest.mark.parametrize("rule", ["excess", "absolute", "ratio"])
def test_every_base_and_rule_follows_the_reference(base, rule):
    shapes = SHAPES if base != "maxfactor" else [(10, 64), (2, 3, 5, 5), (300,), (7,), ()]
    settings = {**SETTINGS[base], "rule": rule, "start_step": 20, "min_size": 128, "analyse_every": 7}
    settings |= {"weight_decay": 0.1, "decoupled_weight_decay": rule != "ratio", "maximize": rule == "absolute"}
    settings |= {"excess": {}, "absolute": {"nesterov": True}, "ratio": {"nu": 0.7}}[rule]
    got, want, alphas, wanted = follow(settings, 60 if base == "maxfactor" else 150, 0.9, shapes=shapes)
    np.testing.assert_allclose(alphas, wanted, atol=1e-6)
    assert alphas[0] > 0.901
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, rtol=5e-5)


def resonant_gradients(shape, steps, period, seed=0):
    """White noise, and in it an oscillation along time whose phase differs from entry to entry."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, shape)
    for step in range(steps):
        yield (np.cos(2 * np.pi * step / period + phase) + rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("base", ["adamw", "momentum", "maxfactor", "muon"])
@pytest.mark.parametrize(("period", "wanted"), [(6, 0.85), (12, 0.75), (24, 0.6), (None, 1.0)])
def test_along_time_a_resonance_lowers_nu_to_what_damps_it(base, period, wanted):
    """1 − ν = (√2·ω − 1/τ)/(ω²·τ) at the period that is heard; in white noise ν stays 1."""
    settings = {"lr": 0.01, "axis": "time", "base": base, "start_step": 24, "analyse_every": 4, "muon_alpha": 0.9}
    if base == "muon":  # five Newton-Schulz steps in bfloat16 are known to two digits
        settings |= {"lr": 1e-3}
    weight = nn.Parameter(torch.ones(20, 64))
    slow = ReferenceFAM(np.ones((20, 64)), rule="damp", **settings)
    optimizer = FAM([weight], **settings)
    stream = resonant_gradients((20, 64), 60, period or 1)
    if period is None:
        stream = iter(np.random.default_rng(0).standard_normal((60, 20, 64)).astype(np.float32))
    for grad in stream:
        weight.grad = torch.tensor(grad)
        optimizer.step()
        slow.step(grad)
    row = optimizer.spectrum_summary()[0]
    assert row["nu"] == pytest.approx(slow.nu, abs=1e-6) == pytest.approx(wanted, abs=0.051)
    assert row["alpha"] == pytest.approx(0.9)
    tolerance = 2e-3 if base == "muon" else 5e-6
    np.testing.assert_allclose(weight.detach().numpy(), slow.w, atol=tolerance, rtol=1e-5)


def test_nu_moves_by_grid_steps_only_and_a_resonance_ends_at_half_its_height():
    white = white_bins(24)
    frequencies = torch.arange(13) / 24

    def heard(height, nu):
        shares = white.clone()
        shares[3] *= 1 + height
        one = torch.ones(1)
        return choose_nu(shares[None], white, 0.9 * one, nu * one, frequencies).item()

    assert heard(0.15, nu=1.0) == 1.0
    assert heard(0.25, nu=1.0) == pytest.approx(0.8)
    assert heard(0.15, nu=0.8) == pytest.approx(0.8)
    assert heard(0.05, nu=0.8) == 1.0
    assert heard(0.25, nu=0.81) == pytest.approx(0.81)  # less than a grid step away from what is wanted


PATHS = [{"foreach": False}, {"foreach": True}, {"fused": True}, {}]


@pytest.mark.parametrize("base", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nu", [1.0, 0.7])
def test_paths_agree_over_many_steps(base, dtype, nu):
    """single, foreach and fused; half types within the rounding of that type, and near the float64 reference."""
    shapes = [(24, 64), (300,), (7,)]
    settings = {**SETTINGS[base], "rule": "absolute", "start_step": 20, "weight_decay": 0.1, "nu": nu}
    paths = [path for path in PATHS if not (base == "maxfactor" and path.get("fused"))]
    runs = [follow(settings, 160, 0.9, dtype, shapes, reference=base != "maxfactor", **path) for path in paths]
    assert runs[0][2][0] == pytest.approx(0.95)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    for got, want, alphas, _ in runs:
        assert alphas == runs[0][2]
        for a, b in zip(got, runs[0][0], strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)
        if want:
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, atol=20 * tolerance)


def test_spectrum_summary_names_what_was_analysed():
    model = nn.ModuleDict({"a": nn.Linear(64, 40), "b": nn.Conv1d(8, 8, 5), "c": nn.Linear(3, 3)})
    groups = [
        {"params": list(model["a"].named_parameters(prefix="a")), "handler": "attention", "alpha": 0.92, "n_bands": 12},
        {"params": list(model["b"].named_parameters(prefix="b")), "handler": "conv", "n_bands": 10},
        {"params": list(model["c"].named_parameters(prefix="c"))},
    ]
    optimizer = FAM(groups, start_step=2, analyse_every=2)
    for step in range(5):
        assert optimizer.spectrum_summary() == [] if step < 4 else True
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        optimizer.step()
    rows = {row["name"]: row for row in optimizer.spectrum_summary()}
    assert list(rows) == ["a.weight", "b.weight"]
    assert rows["a.weight"]["handler"] == "attention"
    assert rows["a.weight"]["base_alpha"] == 0.92
    assert len(rows["a.weight"]["bands"]) == 12
    assert sum(rows["b.weight"]["bands"]) == pytest.approx(1, abs=1e-5)
    assert rows["b.weight"]["step"] == 5
    assert all(type(row["alpha"]) is float and type(row["step"]) is int for row in rows.values())


def test_changes_of_the_base_alpha_reach_analysed_and_other_tensors():
    w, v = nn.Parameter(torch.zeros(32, 64)), nn.Parameter(torch.zeros(3))
    optimizer = FAM([w, v], lr=1.0, base="momentum", start_step=0, analyse_every=1)
    optimizer.param_groups[0]["alpha"] = 0.5
    for param in (w, v):
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.testing.assert_close(v.detach(), torch.full((3,), -0.5))
    torch.testing.assert_close(w.detach(), torch.full((32, 64), -0.5))


def test_state_takes_four_bytes_per_parameter_and_eight_with_adamw():
    for base, wanted in (("momentum", 4), ("adamw", 8)):
        weight = nn.Parameter(torch.zeros(512, 512))
        optimizer = FAM([weight], base=base)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        held = sum(value.numel() * value.element_size() for value in optimizer.state[weight].values())
        assert wanted <= held / weight.numel() < wanted + 0.001


def test_complex_parameters_are_pairs_of_reals():
    one = nn.Parameter(torch.randn(20, 40, dtype=torch.complex64))
    two = nn.Parameter(torch.view_as_real(one.detach()).clone())
    a, b = FAM([one], lr=0.1, start_step=3, rule="absolute"), FAM([two], lr=0.1, start_step=3, rule="absolute")
    for _ in range(30):
        one.grad = torch.randn_like(one)
        two.grad = torch.view_as_real(one.grad).clone()
        a.step()
        b.step()
    torch.testing.assert_close(torch.view_as_real(one.detach()), two.detach())
    assert a.spectrum_summary()[0]["alpha"] == b.spectrum_summary()[0]["alpha"] == pytest.approx(0.95)


BAD = [
    ({"lr": -1e-3}, "lr -0.001 must be at least 0"),
    ({"lr": float("nan")}, "lr nan must be at least 0"),
    ({"lr": float("inf")}, "lr inf must be finite"),
    ({"nu": 0.0}, "nu 0.0 must be above 0 and at most 1"),
    ({"rule": "damp"}, 'set axis="time"'),
    ({"alpha": 1.0}, "alpha 1.0 must be at least 0 and below 1"),
    ({"alpha": -0.1}, "alpha"),
    ({"beta": 1.5}, "beta 1.5 must be"),
    ({"beta2": 1.0}, "beta2"),
    ({"weight_decay": -1}, "weight_decay -1 must be at least 0"),
    ({"eps": -1}, "eps"),
    ({"start_step": -1}, "start_step"),
    ({"min_size": -1}, "min_size"),
    ({"analyse_every": 0}, "analyse_every 0 must be at least 1"),
    ({"history": 2}, "history 2 must be at least 4"),
    ({"n_bands": 34}, "n_bands must be 2 to 33"),
    ({"n_bands": 14, "axis": "time", "rule": "excess"}, "n_bands must be 2 to 13"),
    ({"n_bands": 1}, "n_bands"),
    ({"handler": "atention"}, "handler 'atention' is unknown; choose one of default, conv, attention, embedding"),
    ({"rule": "x"}, "rule 'x' is unknown"),
    ({"axis": "x"}, "axis 'x' is unknown"),
    ({"base": "x"}, "base 'x' is unknown; choose one of adamw, momentum, maxfactor, muon"),
    ({"foreach": True, "fused": True}, "foreach and fused"),
    ({"fused": True, "base": "maxfactor"}, "no fused kernel"),
    ({"capturable": True, "base": "maxfactor"}, "capturable works with"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_silly_settings_are_refused_for_all_and_for_a_group(settings, message):
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=message):
        FAM([weight], **settings)
    optimizer = FAM([weight])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], **settings})
    assert len(optimizer.param_groups) == 1
