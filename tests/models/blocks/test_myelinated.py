import pytest
import torch

from cubelet.models.blocks import MyelinatedBlock
from tests.conformance.subject import assert_close, build, noise


def decided(bias, layers=4):
    """A block whose tokens all decide the same: bias = (gate, jump 0, jump 1, jump 2)."""
    module = build(lambda: MyelinatedBlock(32, 4, layers=layers))
    with torch.no_grad():
        for decider in module.deciders:
            decider.weight.zero_()
            decider.bias.copy_(torch.tensor(bias[: decider.bias.numel()]))
    return module


def closed(module, x):
    h = module.closing_norm(x)
    return x + torch.sigmoid(module.closing_gate(h)) * module.closing(h)


def test_open_gates_without_jumps_are_plain_blocks():
    module, x = decided([9.0, 9.0, 0.0, 0.0]), noise(2, 7, 32)
    y = x
    for layer in module.layers:
        y, _ = layer(y)
    assert_close(module(x)[0], closed(module, y), "all layers")
    assert {k: float(v) for k, v in module.statistics(x).items()} == {"nodes_on": 1.0, "mean_jump": 0.0}


def test_jumps_pass_over_layers_and_carry_the_impulse():
    module, x = decided([9.0, 0.0, 0.0, 9.0]), noise(2, 7, 32)
    y, _ = module.layers[0](x)
    y = y + module.impulse[1] * x  # over layers 1 and 2, to layer 3
    y, _ = module.layers[3](y)
    assert_close(module(x)[0], closed(module, y), "layers 0 and 3")
    assert {k: float(v) for k, v in module.statistics(x).items()} == pytest.approx(
        {"nodes_on": 0.5, "mean_jump": 2 / 3}
    )


def test_closed_gates_leave_the_closing_part():
    module, x = decided([-9.0, 9.0, 0.0, 0.0]), noise(2, 7, 32)
    assert_close(module(x)[0], closed(module, x), "no layer")
    assert module.statistics(x)["nodes_on"] == 0


def test_training_draws_jumps_and_evaluation_does_not():
    module, x = decided([9.0, 0.1, 0.0, 0.0]), noise(2, 30, 32)
    assert module.statistics(x)["mean_jump"] == 0
    module.train()
    torch.manual_seed(0)
    assert 0.2 < module.statistics(x)["mean_jump"] < 1.0
    assert not torch.equal(module(x)[0], module(x)[0])


def test_gradients_reach_every_decision():
    """The gradient of a choice is what the output would change by, times the slope of its softmax."""
    module, x = decided([9.0, 1.0, 0.5, 0.0]), noise(1, 6, 32)
    weight = noise(1, 6, 32, seed=1)
    (module(x)[0] * weight).sum().backward()
    for index, decider in enumerate(module.deciders):
        assert decider.bias.grad is not None
        assert decider.bias.grad[0] != 0, f"gate of layer {index}"
        if index < len(module.deciders) - 1:
            assert (decider.bias.grad[1:] != 0).all(), f"jumps of layer {index}"
            assert abs(float(decider.bias.grad[1:].sum())) < 1e-4, "a softmax does not change when all logits move"


def test_budget():
    x = noise(2, 9, 32)
    assert MyelinatedBlock(32, 4)(x)[1] is None
    module = build(lambda: MyelinatedBlock(32, 4, budget=0.25, budget_weight=2.0))
    used = float(module.statistics(x)["nodes_on"])
    assert module(x)[1].item() == pytest.approx(2.0 * max(used - 0.25, 0) ** 2, rel=1e-4)


@pytest.mark.parametrize("options", [{"layers": 1}, {"budget": 1.5}])
def test_bad_arguments(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        MyelinatedBlock(32, 4, **options)
