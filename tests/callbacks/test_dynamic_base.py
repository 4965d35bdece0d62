import copy
import math
import random

import pytest
import torch
from torch import nn

from cubelet.callbacks import DynamicBase
from tests.reference.callbacks import MemoryLogger, Rotary, Small, bases, follow, train


def noisy(count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [2.5 + draw.gauss(0, 0.2) for _ in range(count)]


@pytest.mark.parametrize("mode", ["ema", "previous", "best"])
def test_the_base_follows_the_reference(mode):
    losses = noisy(30)
    logger = MemoryLogger()
    module = Small(losses=losses)
    callback = DynamicBase(mode=mode, every_n_steps=1, factor=1.5, min_base=3000, max_base=30_000)
    train(module, [callback], 30, logger=logger)
    expected = bases(follow(losses, mode), 10_000, 1.5, 3000, 30_000)
    assert [base for _, base in logger.series("base")] == pytest.approx([10_000, *expected], rel=1e-5)
    assert [step for step, _ in logger.series("base")] == [0, *range(30)]
    assert float(module.rotary.base) == pytest.approx(expected[-1], rel=1e-5)
    assert {3000, 30_000} & set(expected)  # a bound was met


def test_decides_every_so_many_steps_on_the_loss_of_that_step():
    losses = noisy(20)
    logger = MemoryLogger()
    train(Small(losses=losses), [DynamicBase(mode="previous", every_n_steps=5, factor=1.1)], 20, logger=logger)
    expected = bases(follow(losses[4::5], "previous"), 10_000, 1.1, 100, 1e6)
    assert logger.series("base")[1:] == [(5 * i + 4, pytest.approx(base)) for i, base in enumerate(expected)]


def test_averages_over_the_accumulation_window():
    losses = noisy(36)
    module = Small(losses=losses, rows=72)  # 18 batches: no incomplete window at the end of an epoch
    train(module, [DynamicBase(mode="previous", every_n_steps=2, factor=1.1)], 12, accumulate_grad_batches=3)
    windows = [sum(losses[3 * i : 3 * i + 3]) / 3 for i in range(12)]
    assert float(module.rotary.base) == pytest.approx(bases(follow(windows[1::2], "previous"), 1e4, 1.1, 100, 1e6)[-1])


def test_the_reference_is_in_the_units_of_the_loss_under_accumulation():
    callback = DynamicBase(mode="previous", every_n_steps=1)
    train(Small(losses=[2.0, 4.0] * 2), [callback], 2, accumulate_grad_batches=2)
    assert callback.trend.reference == pytest.approx(3.0)


def test_averages_over_the_interval_when_asked():
    losses = noisy(20)
    module = Small(losses=losses)
    train(module, [DynamicBase(mode="previous", every_n_steps=4, factor=1.1, average="interval")], 20)
    means = [sum(losses[4 * i : 4 * i + 4]) / 4 for i in range(5)]
    assert float(module.rotary.base) == pytest.approx(bases(follow(means, "previous"), 1e4, 1.1, 100, 1e6)[-1])


def test_warm_up_builds_the_reference_but_does_not_move():
    losses = noisy(12)
    module = Small(losses=losses)
    train(module, [DynamicBase(mode="best", every_n_steps=1, factor=1.1, warmup_steps=7)], 12)
    directions = [0] * 7 + follow(losses, "best")[7:]
    assert float(module.rotary.base) == pytest.approx(bases(directions, 1e4, 1.1, 100, 1e6)[-1])
    assert any(directions)


def test_losses_that_are_not_finite_move_nothing():
    losses = noisy(9)
    losses[3] = math.nan
    losses[5] = math.inf
    module = Small(losses=losses)
    train(module, [DynamicBase(mode="previous", every_n_steps=1, factor=1.1)], 9)
    assert float(module.rotary.base) == pytest.approx(bases(follow(losses, "previous"), 1e4, 1.1, 100, 1e6)[-1])


def test_validation_losses_never_enter():
    def run(**arguments):
        module = Small(losses=noisy(12))
        train(module, [DynamicBase(mode="previous", every_n_steps=2, factor=1.1)], 12, **arguments)
        return float(module.rotary.base)

    assert run(limit_val_batches=2, val_check_interval=3, num_sanity_val_steps=2) == run()


@pytest.mark.parametrize("average", ["step", "interval"])
def test_resumes_in_the_same_place(tmp_path, average):
    losses = noisy(24)

    def run(steps, ckpt_path=None, skip=0):
        module = Small(losses=losses[skip:], rows=4)
        callback = DynamicBase(every_n_steps=4, factor=1.3, dead_zone=0.0, average=average)
        return module, callback, train(module, [callback], steps, ckpt_path=ckpt_path)

    whole, expected, _ = run(24)
    _, _, trainer = run(11)
    trainer.save_checkpoint(tmp_path / "eleven.ckpt")
    resumed, callback, _ = run(24, tmp_path / "eleven.ckpt", skip=11)
    assert torch.equal(resumed.rotary.base, whole.rotary.base)
    assert callback.state_dict() == expected.state_dict()
    assert float(whole.rotary.base) != 10_000


class Deep(Small):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.blocks = nn.ModuleList(nn.Sequential(Rotary(base)) for base in (100.0, 5000.0))
        self.again = self.blocks[0]


def test_every_rotary_moves_once_from_where_it_stands():
    logger = MemoryLogger()
    module = Deep(losses=[3.0, 2.0, 1.0])
    train(module, [DynamicBase(mode="previous", every_n_steps=1, factor=2.0, min_base=10)], 3, logger=logger)
    assert [float(r.base) for r in (module.rotary, module.blocks[0][0], module.blocks[1][0])] == [4e4, 400, 2e4]
    assert module.blocks[0][0].writes == 2
    assert logger.series("base/blocks.1.0")[-1] == (2, 20_000)


def test_targets_may_be_module_names():
    module = Deep(losses=[3.0, 2.0])
    train(module, [DynamicBase(mode="previous", every_n_steps=1, factor=2.0, targets="blocks.1*")], 2)
    assert [float(r.base) for r in (module.rotary, module.blocks[0][0], module.blocks[1][0])] == [1e4, 100, 1e4]


def test_two_instances_on_the_same_rotary_compose():
    logger = MemoryLogger()
    module = Small(losses=[4.0, 3.0, 2.0, 1.0])
    callbacks = [DynamicBase(mode="previous", every_n_steps=1, factor=2.0), DynamicBase(mode="best", every_n_steps=2)]
    train(module, callbacks, 4, logger=logger)
    assert float(module.rotary.base) == pytest.approx(80_000 * 1.0025)
    assert logger.series("base_2")[-1] == (3, pytest.approx(80_000 * 1.0025))


def test_a_base_that_somebody_else_moved_is_followed():
    class Meddling(DynamicBase):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                pl_module.rotary.set_base(500.0)

    module = Small(losses=[3.0, 2.0, 1.0])
    train(module, [Meddling(mode="previous", every_n_steps=1, factor=2.0)], 3)
    assert float(module.rotary.base) == 1000


def test_nothing_to_act_on_is_said_once_or_raised():
    class Plain(Small):
        def __init__(self):
            super().__init__()
            del self.rotary

    with pytest.warns(UserWarning, match="DynamicBase is idle.*set_base") as record:
        train(Plain(), [DynamicBase(every_n_steps=1)], 3)
    assert sum("idle" in str(warning.message) for warning in record) == 1
    with pytest.raises(ValueError, match="set_base"):
        train(Plain(), [DynamicBase(strict=True)], 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"every_n_steps": 0}, {"factor": 1.0}, {"factor": float("nan")}, {"min_base": 0},
        {"min_base": 10, "max_base": 5}, {"warmup_steps": -1}, {"mode": "mean"}, {"average": "epoch"},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_with_their_value(arguments):
    with pytest.raises(ValueError, match=str(list(arguments.values())[-1])):
        DynamicBase(**arguments)


def test_holds_no_module_before_and_after_a_fit():
    callback = DynamicBase(every_n_steps=1)
    copy.deepcopy(callback)
    train(Small(), [callback], 2)
    assert callback._targets == {}
