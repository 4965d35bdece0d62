import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from cubelet.models.integer_buffers import IntegerBuffer, decode, encode


class Pick(nn.Module):
    order = IntegerBuffer()
    hidden = IntegerBuffer(persistent=False)

    def __init__(self, order=(3, 0, 2, 1)):
        super().__init__()
        self.order = torch.tensor(order)
        self.hidden = torch.tensor(17)

    def forward(self, x):
        return x[..., self.order]


AVERAGES = {
    **{f"EMA {decay}": {"multi_avg_fn": get_ema_multi_avg_fn(decay)} for decay in (0.9, 0.95, 0.9999)},
    **{f"EMA {decay}, one by one": {"avg_fn": get_ema_avg_fn(decay)} for decay in (0.9, 0.999999)},
    "SWA": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "SWA, one by one": {"avg_fn": get_swa_avg_fn()},
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("average", AVERAGES)
def test_every_number_survives_any_number_of_averages(average, precision):
    numbers = torch.cat([torch.arange(3000), torch.arange(2**24 - 1000, 2**24)])
    module = Pick(numbers.tolist()).to(precision)
    averaged = AveragedModel(module, use_buffers=True, **AVERAGES[average])
    for _ in range(30):
        averaged.update_parameters(module)
    assert torch.equal(averaged.module.order, numbers)
    assert averaged.module.hidden == 17


@pytest.mark.parametrize("average", AVERAGES)
def test_a_number_that_moved_becomes_the_mean_of_those_there_were(average):
    numbers = [48, 48, 64, 64, 80, 96, 80, 63, 64]
    module = Pick([numbers[0]])
    averaged = AveragedModel(module, use_buffers=True, **AVERAGES[average])
    floats = AveragedModel(nn.Linear(1, 1), use_buffers=True, **AVERAGES[average])
    for number in numbers:
        module.order = torch.tensor([number])
        source = nn.Linear(1, 1)
        nn.init.constant_(source.bias, number)
        averaged.update_parameters(module)
        floats.update_parameters(source)
        assert 48 <= averaged.module.order.item() <= 96
        assert abs(averaged.module.order.item() - floats.module.bias.item()) <= 5.5  # digits near 0 or 1 round
    assert Pick([5]).load_state_dict(averaged.module.state_dict()).missing_keys == []


def test_digits_are_pythons():
    numbers = torch.tensor([0, 1, 6, 2**24 - 1])
    assert ["".join(str(int(d)) for d in row.flip(0)) for row in encode(numbers)] == [f"{n:024b}" for n in numbers]
    assert torch.equal(decode(encode(numbers)), numbers)


def test_a_state_holds_plain_numbers_under_the_plain_name():
    module = nn.ModuleDict({"pick": Pick()})
    state = module.state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {"pick.order": [3, 0, 2, 1]}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh = nn.ModuleDict({"pick": Pick((0, 1, 2, 3))})
    assert fresh.load_state_dict(torch.load(file, weights_only=True)).missing_keys == []
    assert fresh["pick"].order.tolist() == [3, 0, 2, 1]
    with torch.device("meta"):
        late = nn.ModuleDict({"pick": Pick()})
    late.load_state_dict(state, assign=True)
    assert late["pick"].order.tolist() == [3, 0, 2, 1]


def test_it_is_a_buffer_that_is_written_in_place():
    module = Pick()
    assert [name for name, _ in module.named_buffers()] == ["order_digits", "hidden_digits"]
    held = module.order_digits
    module.order = torch.tensor([0, 1, 2, 3])
    assert module.order_digits is held
    assert module.order.tolist() == [0, 1, 2, 3]
    module.order = torch.tensor([1, 0])
    assert module.order.tolist() == [1, 0]
    other = copy.deepcopy(module).bfloat16()
    assert torch.equal(other.order, module.order)
    assert other.order.dtype == torch.int64


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    module, x = Pick(), torch.randn(2, 4)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))
