"""Determinism, state, copies, gradients and precision."""

import copy

import torch

from .subject import Factory, assert_close, build, noise, refused, run, width


def check_determinism(factory: Factory, *, length: int = 24) -> None:
    """Evaluation repeats bitwise whatever the RNG says and whatever was computed between."""
    module = build(factory)
    x = noise(2, length, width(module))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    y = run(module, x)
    torch.manual_seed(123)
    run(module, noise(1, 2 * length, width(module), seed=5))
    module.train()
    run(module, x)
    module.eval()
    assert torch.equal(run(module, x), y), "evaluation depends on the RNG or on earlier calls"
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), f"a forward changed {name}"


def check_copies(factory: Factory) -> None:
    """deepcopy, state_dict into a fresh module, and meta-device construction give bit-equal outputs."""
    module = build(factory)
    x = noise(2, 12, width(module))
    y = run(module, x)
    assert torch.equal(run(copy.deepcopy(module), x), y), "a deepcopy computes something else"
    torch.manual_seed(99)
    fresh = factory().eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(run(fresh, x), y), "state_dict does not hold everything"
    with torch.device("meta"):
        empty = factory()
    assert all(tensor.is_meta for tensor in empty.state_dict().values()), "a tensor was built outside the meta device"
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(module.state_dict())
    assert torch.equal(run(empty, x), y), "a module built on the meta device computes something else"


def check_gradients(factory: Factory, *, length: int = 40) -> None:
    """Every parameter gets a gradient in training mode, and at one of four nudged places it is not all zeros."""
    total: dict[str, float] = {name: 0.0 for name, _ in factory().named_parameters()}
    for seed in range(4):
        module = build(factory, seed=seed).train()
        result = module(noise(2, length, width(module), seed=seed))
        y, cost = result if isinstance(result, tuple) else (result, None)
        loss = (y * noise(*y.shape, seed=seed + 10)).sum()
        (loss if cost is None else loss + cost).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            total[name] += float(parameter.grad.abs().sum())
    dead = [name for name, size in total.items() if size == 0.0]
    assert not dead, f"parameters whose gradient is always zero: {dead}"


def check_gradcheck(factory: Factory, *, length: int = 5) -> None:
    """Numerical and analytical gradients agree in float64, for the input and every parameter."""
    module = build(factory, dtype=torch.float64)
    x = noise(1, length, width(module), dtype=torch.float64).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def function(inputs, *values):
        y = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (inputs,))
        return y[0] if isinstance(y, tuple) else y

    for name, parameter in module.named_parameters():
        if name.endswith(("rotation_scale", "span_scale")):  # outside their bounds gradients point inward instead
            parameter.data.clamp_(0.1, 0.9)
    values = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True, atol=1e-6)


def check_precision(factory: Factory, *, length: int = 24, flips: float = 0.0) -> None:
    """float64 agrees with float32, and bfloat16 autocast stays near both.

    `flips`: share of tokens that may be further off, for modules whose hard decisions may fall otherwise in bfloat16.
    """
    module, wide = build(factory), build(factory, dtype=torch.float64)
    x = noise(2, length, width(module))
    y = run(module, x)
    exact = run(wide, x.double()).detach()
    assert exact.dtype == torch.float64
    assert_close(y.double(), exact, "float32 against float64", 2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(module, x).detach()
    error = (rough.double() - exact).square().mean(-1).sqrt() / exact.square().mean().sqrt()
    worst = float(error.flatten().quantile(1.0 - flips))
    assert worst < 0.1, f"bfloat16 autocast is off by {worst:.3f} of the output's size"


def check_sizes(factory: Factory) -> None:
    """One token, and an input of the wrong width or rank."""
    module = build(factory)
    assert run(module, noise(2, 1, width(module))).shape == (2, 1, width(module))
    for shape in ((2, 5, width(module) + 1), (5, width(module))):
        with refused(ValueError, str(width(module))):
            run(module, noise(*shape))
