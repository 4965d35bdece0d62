"""Loading state of other optimizers, versions and settings; what a checkpoint changes is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cubelet.optimizers import FAM, MaxFactor, SimpleFAM

SHAPES = [(32, 64), (300,), (7,)]
ADAPT = {"start_step": 5, "analyse_every": 3}


def made(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def go_on(optimizer, params, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def test_a_checkpoint_of_torchs_adamw_continues_in_fam():
    """Its β₁ had one value in all steps, so the product of α' is β₁ to their number; its betas are FAM's, too."""
    params, others = made(), made()
    theirs = torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)
    go_on(theirs, params, range(8))
    ours = FAM(others, min_size=10**9)
    with torch.no_grad():
        for param, other in zip(params, others, strict=True):
            other.copy_(param)
    with pytest.warns(UserWarning, match=r"alpha 0.9 -> 0.8 \(group 0\).*weight_decay 0.0 -> 0.1"):
        ours.load_state_dict(theirs.state_dict())
    for step in range(8, 14):
        go_on(theirs, params, [step])
        go_on(ours, others, [step])
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(other, param, atol=1e-6, rtol=1e-5)
    assert ours.state[others[0]]["beta1_product"].item() == pytest.approx(0.8**14)


def test_the_same_settings_are_loaded_without_a_word():
    for make in (FAM, SimpleFAM, MaxFactor, lambda p: FAM(p, axis="time", nu=0.7)):
        params = made()
        optimizer = make(params)
        go_on(optimizer, params, range(3))
        other = make(made())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"n_bands": 8}, {"n_bands": 12}),
        ({"axis": "time", "history": 12, "n_bands": 4}, {"axis": "time", "history": 8, "n_bands": 4}),
        ({"axis": "time", "history": 12, "n_bands": 4, "rule": "excess"}, {"axis": "index", "rule": "excess"}),
        ({"rule": "excess"}, {"axis": "time", "rule": "damp", "history": 12}),
        ({"base": "adamw"}, {"base": "momentum"}),
        ({"handler": "conv", "n_bands": 10}, {"handler": "attention", "n_bands": 12}),
        ({"min_size": 10**9}, {"min_size": 16}),
    ],
)
@pytest.mark.parametrize("when", ["in mid-run", "after loading"])
def test_changed_settings_work(before, after, when):
    """Bands or a record of another length start anew; the weights go on."""
    params = made()
    optimizer = FAM(params, **ADAPT, **before)
    go_on(optimizer, params, range(30))
    if when == "after loading":
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0].update(after)
    go_on(optimizer, params, range(30, 60))
    assert optimizer.state[params[0]]["step"] == 60
    row = optimizer.spectrum_summary()[0]
    group = optimizer.param_groups[0]
    assert len(row["bands"]) == (group["history"] // 2 + 1 if group["rule"] == "damp" else group["n_bands"])
    assert sum(row["bands"]) == pytest.approx(1, abs=1e-5)
    other = FAM(made(), **ADAPT, **{**before, **after})
    other.load_state_dict(optimizer.state_dict())
    go_on(other, list(other.param_groups[0]["params"]), range(3))


@pytest.mark.parametrize(
    ("before", "after"), [("momentum", "adamw"), ("adamw", "maxfactor"), ("momentum", "maxfactor")]
)
def test_a_base_whose_state_is_missing_is_refused_with_both(before, after):
    params = made()
    optimizer = FAM(params, base=before)
    go_on(optimizer, params, range(3))
    optimizer.param_groups[0]["base"] = after
    with pytest.raises(ValueError, match=rf"base '{after}' needs .*, and the state holds exp_avg"):
        go_on(optimizer, params, range(3, 4))
    optimizer.state.clear()
    go_on(optimizer, params, range(3, 4))


def test_a_setting_out_of_range_is_refused_also_in_mid_run():
    params = made()
    optimizer = FAM(params)
    go_on(optimizer, params, range(2))
    optimizer.param_groups[0]["axis"] = "tiem"
    with pytest.raises(ValueError, match="axis 'tiem' is unknown"):
        optimizer.step()


def peak_of_a_step(optimizer):
    """Most bytes that a step holds at a time beyond what it found, by the allocator's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, with_stack=False) as record:
        optimizer.step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    "settings", [{}, {"nu": 0.7}, {"base": "momentum", "nu": 0.7}, {"base": "muon"}, {"base": "maxfactor"}]
)
def test_a_step_in_bfloat16_holds_few_bytes_for_each_parameter(settings):
    """Few at a time, so that it is a large tensor's share that counts; large ones in pieces, where the rule can.

    Muon's products and MaxFactor's squares of one matrix take 8 and 12 bytes for each of its entries (torch's Muon: 8).
    """
    whole = settings.get("base") in ("muon", "maxfactor")
    shapes = [(256, 1024)] * 4 if whole else [(1024, 1024)]
    params = [nn.Parameter(torch.randn(shape).to(torch.bfloat16)) for shape in shapes]
    optimizer = FAM(params, min_size=10**9, **settings)
    for param in params:
        param.grad = torch.randn_like(param)
    for _ in range(2):
        optimizer.step()
    assert 0 < peak_of_a_step(optimizer) / 2**20 < 5


def test_fam_trains_a_small_regression_as_far_as_adamw_with_nothing_set():
    ends = []
    for make in (FAM, torch.optim.AdamW):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        x = torch.randn(256, 8)
        y = (x @ torch.randn(8, 1)).tanh()
        optimizer = make(model.parameters())
        for _ in range(600):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        ends.append(loss.item())
    assert ends[0] < 1.05 * ends[1] < 0.05
