from types import SimpleNamespace

import pytest
import torch

from cubelet.callbacks.loss_callback import LossAccumulator, loss_of

CPU = torch.device("cpu")


def trainer(accumulate: int = 1, reduce=lambda tensor, reduce_op: tensor):
    return SimpleNamespace(accumulate_grad_batches=accumulate, strategy=SimpleNamespace(reduce=reduce))


def module(automatic: bool = True):
    return SimpleNamespace(automatic_optimization=automatic)


def test_the_loss_in_every_form_of_output():
    loss = torch.tensor(2.0, requires_grad=True) * 3
    for outputs in (loss, {"loss": loss, "other": 1}, loss.reshape(1)):
        found = loss_of(outputs)
        assert found.item() == 6
        assert found.shape == ()
        assert not found.requires_grad
    for outputs in (None, {}, {"loss": None}, torch.ones(3), "text", 4.0):
        assert loss_of(outputs) is None


def test_mean_over_micro_batches_undoes_their_division():
    losses = LossAccumulator()
    for value in (1.0, 2.0, 6.0):
        losses.add(trainer(3), module(), torch.tensor(value / 3))
    assert losses.mean(trainer(3), CPU) == pytest.approx(3.0)
    assert losses.mean(trainer(3), CPU) is None  # emptied
    losses.add(trainer(3), module(automatic=False), {"loss": torch.tensor(5.0)})  # nobody divided this one
    assert losses.mean(trainer(3), CPU) == pytest.approx(5.0)


def test_losses_that_are_not_finite_are_left_out():
    losses = LossAccumulator()
    for value in (1.0, float("nan"), 3.0, float("inf")):
        losses.add(trainer(), module(), torch.tensor(value))
    assert losses.mean(trainer(), CPU) == pytest.approx(2.0)


def test_a_rank_without_a_loss_takes_part_in_the_reduction():
    def reduce(tensor, reduce_op):
        assert reduce_op == "sum"
        return tensor + torch.tensor([7.0, 2.0])  # the other rank: two losses that sum to 7

    losses = LossAccumulator()
    losses.add(trainer(), module(), None)
    assert losses.mean(trainer(reduce=reduce), CPU) == pytest.approx(3.5)
    losses.add(trainer(), module(), torch.tensor(2.0, dtype=torch.bfloat16))
    assert losses.mean(trainer(reduce=reduce), CPU) == pytest.approx(3.0)


def test_what_waits_is_kept_per_rank():
    def other_rank(losses):  # this rank's losses, and another's
        return torch.stack((losses, losses + 10))

    gathering = SimpleNamespace(device=CPU, all_gather=other_rank)
    losses = LossAccumulator()
    for value in (1.0, None, 3.0):
        losses.add(trainer(2), module(), None if value is None else torch.tensor(value / 2))
    kept = losses.gather(gathering)
    for rank, expected in ((0, 2.0), (1, 22.0), (2, 2.0)):  # rank 2 of a larger world continues with what rank 0 had
        resumed = LossAccumulator()
        resumed.restore(kept, rank)
        assert resumed.mean(trainer(2), CPU) == pytest.approx(expected)
    assert losses.mean(trainer(2), CPU) == pytest.approx(2.0)  # gathering takes nothing away


def test_nothing_waits_between_windows():
    alone = SimpleNamespace(device=CPU, all_gather=lambda losses: losses)
    losses = LossAccumulator()
    kept = losses.gather(alone)
    losses.restore(kept, 0)
    assert losses.mean(trainer(), CPU) is None
