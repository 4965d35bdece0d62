"""A base that is a parameter: RoPE at the start, the slope that a probe measures, its own undecayed group."""

import copy

import pytest
import torch

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import LearnedBaseRoPE, RoPE
from cubelet.optimizers import parameter_groups


def moved(shift, **options):
    rotary = LearnedBaseRoPE(16, 2, **options).double()
    torch.nn.init.constant_(rotary.base_shift, shift)
    return rotary


def test_it_is_rope_at_the_learned_base():
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    positions = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 35])
    for shift, base in ((0.0, 500.0), (0.2, 500.0 * torch.e**2), (-0.1, 500.0 / torch.e)):
        torch.testing.assert_close(
            moved(shift, base=500.0).rotate(x, positions),
            RoPE(16, 2, base=base).double().rotate(x, positions),  # its base is stored in float32
            rtol=1e-5,
            atol=1e-5,
        )
    low = moved(-10.0)
    assert float(low.learned_base().detach()) > 1
    assert low.rotate(x).isfinite().all()


def test_the_gradient_is_the_slope_between_a_larger_and_a_smaller_base():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 12, 8, dtype=torch.float64)

    def score(rotary):
        return (rotary.rotate(q) @ rotary.rotate(k).mT).sin().sum()

    rotary = moved(0.05, base=300.0, speed=4.0)
    score(rotary).backward()
    h = 1e-6
    above, below = (float(score(moved(0.05 + side, base=300.0, speed=4.0)).detach()) for side in (h, -h))
    assert float(rotary.base_shift.grad) == pytest.approx((above - below) / (2 * h), rel=1e-5)


def names_of(group):
    return [name for name, _ in group["params"]]


def test_it_learns_in_an_attention_and_comes_back_from_a_checkpoint():
    torch.manual_seed(1)
    attention = MultiHeadAttention(16, 2, rotary=LearnedBaseRoPE(16, 2))
    x = torch.randn(2, 12, 16)
    [group] = [g for g in parameter_groups(attention, weight_decay=0.1) if "rotary.base_shift" in names_of(g)]
    assert group["weight_decay"] == 0
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        attention(x).square().sum().backward()
        optimizer.step()
    assert float(attention.rotary.learned_base()) != pytest.approx(10_000.0, rel=1e-3)
    again = copy.deepcopy(attention)
    again.rotary.reset_parameters()
    assert float(again.rotary.learned_base()) == pytest.approx(10_000.0)
    again.load_state_dict(attention.state_dict())
    torch.testing.assert_close(again(x), attention(x))
    with torch.device("meta"):
        meta = LearnedBaseRoPE(16, 2)
    meta.to_empty(device="cpu").reset_parameters()
    assert float(meta.learned_base()) == pytest.approx(10_000.0)
    with pytest.raises(ValueError, match="speed 0 must be above 0"):
        LearnedBaseRoPE(16, 2, speed=0)


@pytest.mark.slow
def test_a_compiled_graph_gives_the_same_and_the_same_gradient():
    q = torch.randn(1, 2, 12, 8)
    results = []
    for run in (lambda r, x: r.rotate(x), torch.compile(lambda r, x: r.rotate(x), fullgraph=True)):
        rotary = moved(0.05).float()
        out = run(rotary, q)
        out.sin().sum().backward()
        results.append((out, rotary.base_shift.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
