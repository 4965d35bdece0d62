import math
import random

import pytest

from cubelet.callbacks.loss_controller import TrendDetector, moved
from tests.reference.callbacks import bases, follow


def noisy(seed: int, count: int = 60) -> list[float]:
    draw = random.Random(seed)
    losses = [3.0 * math.exp(-i / 30) + draw.gauss(0, 0.1) for i in range(count)]
    losses[7] = math.nan
    losses[20] = math.inf
    return losses


@pytest.mark.parametrize("mode", ["previous", "best", "ema"])
@pytest.mark.parametrize("seed", range(3))
def test_directions_are_those_of_the_whole_history(mode, seed):
    losses = noisy(seed)
    follower = TrendDetector(mode, dead_zone=0.01, decay=0.8)
    directions = [follower.observe(loss) for loss in losses]
    assert directions == follow(losses, mode, 0.01, 0.8)
    assert {-1, 1} <= set(directions)


def test_values_are_multiplied_divided_and_clamped():
    directions = [1, 1, 1, 0, -1, -1, -1, -1, -1, -1, 1]
    value, values = 100.0, []
    for direction in directions:
        value = moved(value, direction, 1.5, 80.0, 300.0)
        values.append(value)
    assert values == pytest.approx(bases(directions, 100.0, 1.5, 80.0, 300.0))
    assert max(values) == 300.0
    assert min(values) == 80.0


def test_ema_holds_on_a_noisy_plateau_where_previous_wanders():
    draw = random.Random(1)
    losses = [1.7 + draw.gauss(0, 0.002) for _ in range(400)]
    moves = {
        mode: sum(map(abs, map(TrendDetector(mode, dead_zone=0.005).observe, losses))) for mode in ("ema", "previous")
    }
    assert moves["previous"] == 399
    assert moves["ema"] < 40


def test_state_continues_the_same_decisions():
    losses = noisy(4)
    whole = TrendDetector("ema")
    expected = [whole.observe(loss) for loss in losses]
    first, second = TrendDetector("ema"), TrendDetector("ema")
    got = [first.observe(loss) for loss in losses[:31]]
    second.load_state_dict(first.state_dict())
    assert got + [second.observe(loss) for loss in losses[31:]] == expected


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"mode": "median"}, "median"), ({"dead_zone": -0.1}, "-0.1"), ({"decay": 1.0}, "1.0")],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        TrendDetector(**arguments)
