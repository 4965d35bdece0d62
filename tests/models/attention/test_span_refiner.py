import copy

import pytest
import torch

from cubelet.models.attention import SpanRefiner


def drive(refiner, steps, loss_of):
    """Feed the loss that the span in force leads to; returns the spans."""
    spans = []
    for step in range(steps):
        spans.append(refiner.choose(loss_of(refiner.span, step)))
    return spans


def test_it_starts_at_full_span():
    refiner = SpanRefiner(levels=4)
    assert refiner.span == 1.0


def test_it_learns_the_span_of_the_lowest_loss():
    refiner = SpanRefiner(levels=5, exploration=0.2, discount=0.5, learning_rate=0.2, optimism=0.5, seed=3)
    spans = drive(refiner, 3000, lambda span, step: 1.0 + abs(span - 0.4))
    late = spans[-300:]
    assert sum(abs(span - 0.4) < 1e-6 for span in late) > 0.4 * len(late)
    assert sum(abs(span - 0.4) < 0.21 for span in late) > 0.85 * len(late)


def test_q_values_follow_the_rule():
    refiner = SpanRefiner(levels=3, exploration=0.0, learning_rate=0.5, discount=0.9, optimism=0.2)
    refiner.choose(2.0)  # state: level trend, full span; ties go to "hold", longer being impossible
    assert int(refiner.action) == 1
    refiner.choose(1.5)  # reward 0.5; now the loss is falling
    old, best = 0.2, 0.2
    assert refiner.table[1, 2, 1].item() == pytest.approx(old + 0.5 * (0.5 + 0.9 * best - old))


def test_same_losses_same_choices_also_after_a_restart():
    losses = torch.rand(60, generator=torch.Generator().manual_seed(0)).tolist()
    whole, other, first = (SpanRefiner(exploration=0.5, seed=5) for _ in range(3))
    torch.manual_seed(1)
    spans = [whole.choose(loss) for loss in losses]
    torch.manual_seed(2)
    assert [other.choose(loss) for loss in losses] == spans
    for loss in losses[:30]:
        first.choose(loss)
    resumed = SpanRefiner(exploration=0.5, seed=5)
    resumed.load_state_dict(first.state_dict())
    assert [copy.deepcopy(resumed).choose(losses[30])] == [spans[30]]
    assert [resumed.choose(loss) for loss in losses[30:]] == spans[30:]
    assert len(set(spans)) > 2, "it never moved"
    assert list(map(SpanRefiner(exploration=0.5, seed=6).choose, losses)) != spans


def test_evaluation_and_nan_change_nothing():
    refiner = SpanRefiner()
    drive(refiner, 5, lambda span, step: 1.0 + span)
    before = copy.deepcopy(refiner.state_dict())
    refiner.eval()
    span = refiner.span
    assert refiner.choose(0.1) == span
    refiner.train()
    assert refiner.choose(float("nan")) == span
    assert all(torch.equal(value, before[name]) for name, value in refiner.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"levels": 1}, {"learning_rate": 1.5}, {"discount": -0.1}, {"exploration": 2.0}, {"dead_zone": -1.0}]
)
def test_bad_arguments(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        SpanRefiner(**options)
