"""What any torch optimizer must do, for every optimizer of the package, base, axis and execution path.

`torch.optim.AdamW` runs the same checks as a control: what it does not do either is not asked for.
"""

import copy
import gc
import io
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, MaxFactor, SimpleFAM

# Settings under which the adaptive branch runs early and α' moves away from α.
ADAPT = {"start_step": 5, "analyse_every": 3, "rule": "absolute"}
TIME = {"axis": "time", "history": 8, "n_bands": 4}
MAKERS = {
    "momentum": (FAM, {**ADAPT, "lr": 0.02, "base": "momentum"}),
    "momentum-time": (FAM, {**ADAPT, **TIME, "lr": 0.02, "base": "momentum"}),
    "adamw": (FAM, {**ADAPT, "lr": 0.02, "weight_decay": 0.1}),
    "adamw-nu": (FAM, {**ADAPT, "lr": 0.02, "nu": 0.7, "weight_decay": 0.1}),
    "adamw-damp": (FAM, {**ADAPT, **TIME, "lr": 0.02, "rule": "damp"}),
    "adamw-single": (FAM, {**ADAPT, "lr": 0.02, "foreach": False, "nesterov": True}),
    "adamw-capturable": (FAM, {**ADAPT, **TIME, "lr": 0.02, "capturable": True}),
    "maxfactor-base": (FAM, {**ADAPT, "lr": 0.02, "base": "maxfactor"}),
    "muon": (FAM, {**ADAPT, "lr": 0.02, "base": "muon", "nesterov": True}),
    "simple": (SimpleFAM, {"lr": 0.02, "start_step": 5, "analyse_every": 3}),
    "maxfactor": (MaxFactor, {"lr": 0.02}),
    "torch": (torch.optim.AdamW, {"lr": 0.02}),
}
SHAPES = [(32, 96), (1040,), (6, 3, 5, 5), (3,), ()]
every = pytest.mark.parametrize("maker", MAKERS)
ours = pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker != "torch"])
adaptive = pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker not in ("torch", "maxfactor")])


def make(maker, params, **changes):
    cls, settings = MAKERS[maker]
    return cls(params, **{**settings, **changes})


def parameters(seed=0, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def set_gradients(params, step):
    """Low-rank gradients with a wave along the last axis, plus the parameter itself: a function of (step, values)."""
    generator = torch.Generator().manual_seed(1000 + step)
    for number, param in enumerate(params):
        wave = torch.cos(torch.arange(param.shape[-1] if param.ndim else 1) * (2.9 if number % 2 else 0.1))
        scale = torch.randn((*param.shape[:-1], 1) if param.ndim else (), generator=generator)
        param.grad = (scale * wave.view(-1 if param.ndim else ()) + 0.1 * param.detach()).to(param.dtype)


def run(optimizer, params, steps):
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return [param.detach().clone() for param in params]


def assert_equal(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].keys() == b[key].keys()
        for name, value in a[key].items():
            assert value.dtype == b[key][name].dtype, name
            assert torch.equal(value, b[key][name]), name


@every
@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ("state_dict", torch.bfloat16), ("saved", torch.bfloat16), ("saved", torch.float32),
        ("pickle", torch.float32), ("deepcopy", torch.bfloat16),
    ],
)  # fmt: skip
def test_a_stopped_run_goes_on_bit_exactly(maker, dtype, how):
    if maker == "torch" and how == "state_dict":
        pytest.skip("torch's optimizers share their memory with a state dict that they load")
    params = parameters(dtype=dtype)
    optimizer = make(maker, params)
    run(optimizer, params, range(30))
    if how in ("pickle", "deepcopy"):
        clone = (lambda x: pickle.loads(pickle.dumps(x))) if how == "pickle" else copy.deepcopy
        other = clone(optimizer)
        others = [param for group in other.param_groups for param in group["params"]]
    else:
        others = [nn.Parameter(param.detach().clone()) for param in params]
        other = make(maker, others, lr=9.0)  # overwritten by the loaded groups
        saved = optimizer.state_dict()
        if how == "saved":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        other.load_state_dict(saved)
    assert_same_state(optimizer.state_dict()["state"], other.state_dict()["state"])
    want = run(optimizer, params, range(30, 60))
    assert_equal(run(other, others, range(30, 60)), want)
    assert_same_state(optimizer.state_dict()["state"], other.state_dict()["state"])


@ours
def test_loading_shares_no_memory_with_the_loaded_dict(maker):
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(10))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    others = [nn.Parameter(param.detach().clone()) for param in params]
    other = make(maker, others)
    other.load_state_dict(saved)
    run(other, others, range(10, 13))
    assert_same_state(kept["state"], optimizer.state_dict()["state"])


@every
def test_state_dict_hooks_are_honoured(maker):
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(10))
    other = make(maker, params)

    def double_steps(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        for state in state_dict["state"].values():
            state["step"] *= 2
        return state_dict

    other.register_load_state_dict_pre_hook(double_steps)
    other.load_state_dict(optimizer.state_dict())
    assert all(state["step"] == 20 for state in other.state_dict()["state"].values())


@every
def test_state_is_tensors_only(maker):
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(10))
    for param in params:
        assert all(isinstance(value, torch.Tensor) for value in optimizer.state[param].values())
        assert optimizer.state[param]["step"] == 10


@adaptive
def test_adaptation_really_runs_here(maker):
    """Guards the other tests: with these settings and gradients α' does move, up and down the list of tensors."""
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(30))
    summary = optimizer.spectrum_summary()
    assert len(summary) == (2 if maker == "simple" else 3)
    if maker == "adamw-damp":
        assert any(row["nu"] < 1 for row in summary)
    else:
        assert any(abs(row["alpha"] - row["base_alpha"]) > 0.01 for row in summary)


@every
def test_closure_gets_gradients_and_its_loss_is_returned(maker):
    params = parameters()
    optimizer = make(maker, params)

    def closure():
        optimizer.zero_grad()
        loss = sum((param**2).sum() for param in params)
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        for _ in range(20):
            last = optimizer.step(closure)
    assert last < first
    assert optimizer.step() is None


@every
def test_frozen_and_unused_parameters_have_no_state_and_do_not_move(maker):
    params = [*parameters(), nn.Parameter(torch.ones(300)), nn.Parameter(torch.ones(3), requires_grad=False)]
    optimizer = make(maker, params)
    run(optimizer, params[:-2], range(12))
    for param in params[-2:]:
        assert torch.equal(param, torch.ones_like(param))
        assert not optimizer.state.get(param)
    params[-2].grad = torch.ones(300)
    optimizer.step()
    assert optimizer.state[params[-2]]["step"] == 1
    assert optimizer.state[params[0]]["step"] == 13
    assert not torch.equal(params[-2], torch.ones(300))


@every
def test_empty_and_scalar_parameters(maker):
    params = [nn.Parameter(torch.zeros(0, 5)), nn.Parameter(torch.zeros(0)), nn.Parameter(torch.tensor(2.0))]
    optimizer = make(maker, params, **({"min_size": 0} if MAKERS[maker][0] is FAM else {}))
    for _ in range(30):
        for param in params:
            param.grad = 2 * param.detach()
        optimizer.step()
    assert abs(params[2].item()) < 2
    optimizer.load_state_dict(optimizer.state_dict())


@every
def test_memory_layout_does_not_matter(maker):
    """Transposed, channels-last, expanded-gradient and sliced parameters follow the contiguous ones."""
    plain = parameters(shapes=[(32, 96), (6, 3, 5, 5), (16, 40), (24, 48)])
    odd = [
        nn.Parameter(plain[0].detach().t().contiguous().t()),
        nn.Parameter(plain[1].detach().contiguous(memory_format=torch.channels_last)),
        nn.Parameter(plain[2].detach().clone()),
        nn.Parameter(torch.zeros(24, 96)[:, ::2].copy_(plain[3].detach())),
    ]
    one, two = make(maker, plain), make(maker, odd)
    for step in range(40):
        set_gradients(plain, step)
        for a, b in zip(plain, odd, strict=True):
            b.grad = a.grad.clone()
        odd[0].grad = plain[0].grad.t().contiguous().t() if step % 2 else plain[0].grad.clone()
        odd[2].grad = plain[2].grad.t().contiguous().t()
        one.step()
        two.step()
    for a, b in zip(plain, odd, strict=True):
        torch.testing.assert_close(b, a, atol=2e-6, rtol=1e-5)


@every
def test_lr_as_tensor_and_changed_between_steps(maker):
    params, others = parameters(), parameters()
    rate = torch.tensor(0.02)
    one, two = make(maker, params, lr=0.02), make(maker, others, lr=rate)
    run(one, params, range(10))
    run(two, others, range(10))
    for group in one.param_groups:
        group["lr"] = 0.01
    rate.fill_(0.01)
    for a, b in zip(run(one, params, range(10, 20)), run(two, others, range(10, 20)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@every
def test_maximize_is_minimize_of_the_negative(maker):
    params, others = parameters(), parameters()
    one, two = make(maker, params, weight_decay=0.0), make(maker, others, weight_decay=0.0, maximize=True)
    for step in range(30):
        set_gradients(params, step)
        for a, b in zip(params, others, strict=True):
            b.grad = -a.grad
        one.step()
        kept = [param.grad.clone() for param in others]
        two.step()
        assert_equal([param.grad for param in others], kept)
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@every
def test_groups_may_be_named_and_added_mid_run(maker):
    model = nn.Sequential(nn.Linear(32, 40), nn.Linear(40, 3))
    optimizer = make(maker, model[0].named_parameters())
    params = list(model[0].parameters())
    run(optimizer, params, range(10))
    with pytest.raises(ValueError, match="with/without names"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.add_param_group({"params": list(model[1].named_parameters()), "lr": 0.5})
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert optimizer.param_groups[1]["param_names"] == ["weight", "bias"]
    before = model[1].weight.detach().clone()
    run(optimizer, list(model.parameters()), range(10, 20))
    assert optimizer.state[model[0].weight]["step"] == 20
    assert optimizer.state[model[1].weight]["step"] == 10
    assert not torch.equal(before, model[1].weight)


@every
def test_one_group_or_many_and_any_order_give_the_same(maker):
    want = run(make(maker, params := parameters()), params, range(40))
    params = parameters()
    got = run(make(maker, [params[i] for i in (3, 1, 4, 0, 2)]), params, range(40))
    assert_equal(got, want)
    params = parameters()
    assert_equal(run(make(maker, [{"params": [param]} for param in params]), params, range(40)), want)


@every
def test_global_random_state_is_untouched(maker):
    params = parameters()
    optimizer = make(maker, params)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(optimizer, params, range(30))
    assert torch.equal(before, torch.get_rng_state())


@ours
def test_sparse_gradients_are_refused_by_name(maker):
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = make(maker, embedding.named_parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"weight: .* sparse"):
        optimizer.step()


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradients_reach_the_parameter_but_not_the_spectrum(maker, bad):
    params = parameters(shapes=[(32, 96), (32, 96)])
    optimizer = make(maker, params)
    run(optimizer, params, range(20))
    before = {key: value.clone() for key, value in optimizer.state[params[0]].items() if key in ("bands", "alpha")}
    set_gradients(params, 20)
    params[0].grad[0, 0] = bad
    optimizer.step()  # the 21st step: an analysis
    assert not params[0].isfinite().all()
    assert params[1].isfinite().all()
    for key, value in before.items():
        assert torch.equal(optimizer.state[params[0]][key], value)


@every
def test_optimizer_hooks_and_profiler_names(maker):
    params = parameters()
    optimizer = make(maker, params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    run(optimizer, params, range(2))
    assert seen == ["pre", "post"] * 2


def rosenbrock(tensor):
    x, y = tensor
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@every
def test_problems_go_down(maker):
    rates = {"adamw": 0.02, "maxfactor-base": 0.05, "maxfactor": 0.05, "simple": 5e-4}
    point = nn.Parameter(torch.tensor([-1.0, 1.2]))
    optimizer = make(maker, [point], lr=rates.get(maker, 5e-4), weight_decay=0.0)
    start = rosenbrock(point).item()
    for _ in range(300):
        optimizer.zero_grad()
        rosenbrock(point).backward()
        optimizer.step()
    assert rosenbrock(point).item() < 0.6 * start

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 40, generator=generator)
    y = (x @ torch.randn(40, 8, generator=generator)).argmax(1)
    weight = nn.Parameter(0.1 * torch.randn(8, 40, generator=generator))  # MaxFactor's steps are relative to the weight
    scale = {"adamw": 0.01, "maxfactor": 0.1, "maxfactor-base": 0.1}.get(maker, 0.3)
    optimizer = make(maker, [weight], lr=scale, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T, y)
        loss.backward()
        optimizer.step()
    assert loss < 0.8


def weights_after(maker, change, steps=24, at=10, shapes=SHAPES):
    """The weights after a run in which `change(optimizer, params)` is made after some steps; and the optimizer."""
    params = parameters(shapes=shapes)
    optimizer = make(maker, params)
    run(optimizer, params, range(at))
    params = change(optimizer, params) or params
    return run(optimizer, params, range(at, steps)), optimizer


@every
def test_a_parameter_replaced_in_its_group_moves_and_takes_its_state_along(maker):
    """As pruning, densification and resized vocabularies do it: a new parameter, the state moved to it."""

    def change(optimizer, params):
        new = [nn.Parameter(param.detach().clone()) for param in params]
        for place in (1, 3):  # some of them, none at the beginning
            state = optimizer.state.pop(params[place])
            optimizer.state[new[place]] = {key: value.clone() for key, value in state.items()}
            optimizer.param_groups[0]["params"][place] = new[place]
        return [new[place] if place in (1, 3) else param for place, param in enumerate(params)]

    want, _ = weights_after(maker, lambda *_: None)
    got, optimizer = weights_after(maker, change)
    assert_equal(got, want)
    assert len(optimizer.state_dict()["state"]) == len(SHAPES)


@every
def test_a_pruned_parameter_goes_on_with_the_rows_that_are_left(maker):
    """Rows of the parameter and of the state of its size are dropped; small state of another size starts anew."""

    def change(optimizer, params):
        old, keep = params[0], torch.arange(0, 32, 2)
        new = nn.Parameter(old.detach()[keep].clone())
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            key: value[keep].clone() if value.shape[:1] == (32,) else value for key, value in state.items()
        }
        optimizer.param_groups[0]["params"][0] = new
        return [new, *params[1:]]

    got, optimizer = weights_after(maker, change)
    assert got[0].shape == (16, 96)
    assert got[0].isfinite().all()
    assert not torch.equal(got[0], parameters()[0].detach()[::2])
    optimizer.load_state_dict(optimizer.state_dict())


@every
def test_deleted_state_starts_anew(maker):
    def change(optimizer, params):
        del optimizer.state[params[2]]

    _, optimizer = weights_after(maker, change)
    params = optimizer.param_groups[0]["params"]
    assert optimizer.state[params[2]]["step"] == 14
    assert optimizer.state[params[1]]["step"] == 24
    optimizer.state.clear()
    run(optimizer, params, range(1))
    assert all(state["step"] == 1 for state in optimizer.state.values())
    optimizer.state_dict()


@every
def test_a_state_tensor_that_somebody_replaced_is_the_one_that_is_used(maker):
    """Not the first tensor of the first parameter: the last of the last large one."""

    def change(optimizer, params):
        for key, value in optimizer.state[params[2]].items():
            optimizer.state[params[2]][key] = value.clone()

    want, _ = weights_after(maker, lambda *_: None)
    got, optimizer = weights_after(maker, change)
    assert_equal(got, want)
    assert optimizer.state[optimizer.param_groups[0]["params"][2]]["step"] == 24


@every
def test_data_of_other_strides_or_memory_is_followed(maker):
    """`p.data = …` keeps the parameter and changes all else: a transposed copy, then the same memory transposed."""

    def change(optimizer, params):
        params[0].data = params[0].data.t().contiguous().t()
        params[2].data = params[2].data.contiguous(memory_format=torch.channels_last)

    want, _ = weights_after(maker, lambda *_: None)
    for got, wanted in zip(weights_after(maker, change)[0], want, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-3 if maker == "muon" else 2e-6, rtol=1e-5)


@ours
def test_state_of_another_size_than_its_parameter_is_refused_with_both(maker):
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(3))
    params[0].data = torch.ones(40, 96)
    params[0].grad = torch.ones(40, 96)
    with pytest.raises(ValueError, match=r"shape \(40, 96\).*needs"):
        optimizer.step()


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_and_device_do_not_matter(maker, dtype):
    want, _ = weights_after(maker, lambda *_: None, steps=16)
    torch.set_default_dtype(dtype)
    try:
        params = parameters()
        optimizer = make(maker, params)
        for step in range(16):
            torch.set_default_dtype(torch.float32)
            set_gradients(params, step)
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(params, want)


@every
def test_optimizers_in_two_threads_do_not_disturb_each_other(maker):
    shapes = [(64, 256), (300,)]
    want, _ = weights_after(maker, lambda *_: None, steps=20, shapes=shapes)
    results = {}

    def work(name):
        results[name] = weights_after(maker, lambda *_: None, steps=20, shapes=shapes)[0]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in results.values():
        assert_equal(got, want)


@every
def test_nothing_is_kept_after_the_optimizer_is_gone(maker):
    def large():
        gc.collect()
        return sum(
            o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is torch.Tensor and o.numel() >= 128 * 128
        )

    before = large()
    params = parameters(shapes=[(128, 256), (128, 128)])
    optimizer = make(maker, params)
    run(optimizer, params, range(3))
    del optimizer, params
    assert large() <= before


@every
def test_saved_state_of_a_parameter_holds_that_parameter_only(maker):
    params = parameters()
    optimizer = make(maker, params)
    run(optimizer, params, range(12))
    state = optimizer.state_dict()["state"][3]  # of three entries
    file = io.BytesIO()
    torch.save(state, file)
    assert len(file.getvalue()) < 4096 + sum(value.numel() * value.element_size() for value in state.values())


@every
def test_an_infinite_rate_is_refused_or_as_in_torch(maker):
    params = parameters()
    if maker == "torch":
        make(maker, params, lr=float("inf"))  # the control: torch takes it
        return
    for value in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match="lr"):
            make(maker, params, lr=value)


@ours
def test_misspelt_keys_of_a_group_are_refused_and_other_peoples_keys_are_not(maker):
    params = parameters()
    with pytest.raises(ValueError, match=r"key 'wieght_decay', which is no setting; did you mean 'weight_decay'"):
        make(maker, [{"params": params, "wieght_decay": 0.1}])
    optimizer = make(maker, [{"params": params, "lr_scale": 0.1, "layer": 3}])
    assert optimizer.param_groups[0]["layer"] == 3


@pytest.mark.parametrize("maker", ["adamw", "adamw-nu", "muon", "torch"])
@pytest.mark.parametrize("schedule", ["one", "cyclic"])
def test_schedules_that_cycle_betas_reach_the_update(maker, schedule):
    """With FAM's analysis off, FAM follows torch's AdamW under the same schedule (where it is AdamW)."""
    ends = []
    for kind in (maker, "torch"):
        params = parameters(shapes=[(300,), (7,)])
        settings = {"start_step": 10**9, "nu": None} if kind != "torch" else {}
        optimizer = make(kind, params, weight_decay=0.0, betas=(0.9, 0.99), **settings)
        if schedule == "one":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=30)
        else:
            scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.001, 0.05, 5, base_momentum=0.7)
        betas = set()
        for step in range(25):
            run(optimizer, params, [step])
            scheduler.step()
            betas.add(optimizer.param_groups[0]["betas"][0])
        assert len(betas) > 5
        ends.append(params)
    if maker == "adamw":
        # Momentum corrected by the product of the β₁ that were used, where torch takes the last one to the power t.
        assert all((a - b).abs().max() < 0.2 for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("maker", ["adamw-damp", "muon", "adamw-capturable", "maxfactor"])
def test_compiled_steps_are_not_compiled_again(maker):
    params = parameters(shapes=[(32, 96), (7,)])
    optimizer = make(maker, params)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(optimizer.step, backend="eager")
    others = parameters(shapes=[(32, 96), (7,)])
    plain = make(maker, others)
    for number in range(12):
        set_gradients(params, number)
        step()
        run(plain, others, [number])
        if number == 2:
            frames = torch._dynamo.utils.counters["frames"]["total"]
    assert torch._dynamo.utils.counters["frames"]["total"] == frames
    assert_equal(params, others)


SAVED = Path(__file__).parent / "data" / "optimizers_0.1.0.pt"


@pytest.mark.parametrize("name", ["momentum", "adamw", "time", "maxfactor", "MaxFactor", "SimpleFAM"])
def test_a_run_of_version_0_1_0_continues(name):
    """The file holds weights and state after 20 steps of 0.1.0, and the weights that it reached after 40."""
    row = torch.load(SAVED, weights_only=True)[name]
    params = [nn.Parameter(param.clone()) for param in row["params"]]
    optimizer = {"MaxFactor": MaxFactor, "SimpleFAM": SimpleFAM}.get(name, FAM)(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # settings differ from the defaults, which is told
        optimizer.load_state_dict(row["state"])
    for step in range(20, 40):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    for param, later in zip(params, row["later"], strict=True):
        torch.testing.assert_close(param.detach(), later, atol=2e-6, rtol=1e-5)
