import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cubelet.callbacks import NonFiniteGuard, NonFiniteLoss
from cubelet.callbacks.nonfinite_guard import gradient_norms
from tests.reference.callbacks import MemoryLogger, Recorder, Small, train


class Poisoned(Small):
    """Its loss is multiplied by NaN (or another number) at chosen batches."""

    def __init__(self, bad, by: float = math.nan, **arguments):
        super().__init__(**arguments)
        self.bad, self.by, self.batches = set(bad), by, 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.batches += 1
        return loss * self.by if self.batches - 1 in self.bad else loss


def finite(module):
    return all(p.isfinite().all() for p in module.parameters())


def test_one_message_with_step_checkpoint_and_gradient_before_the_weights_are_spoiled(tmp_path):
    norms = {}

    class Noting(Poisoned):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 4:
                norms.update({name: float(p.grad.norm()) for name, p in self.named_parameters()})

    recorder, module = Recorder(), Noting([5])
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last=True)
    with pytest.raises(NonFiniteLoss) as caught:
        train(module, [NonFiniteGuard(measure_every=2), recorder, checkpoint], 20, enable_checkpointing=True)
    message = str(caught.value)
    assert "loss of optimizer step 6 is nan" in message
    assert "weights are still finite" in message
    assert f"Last good checkpoint: {tmp_path / 'last.ckpt'}" in message
    largest = max(norms, key=norms.__getitem__)  # of step 5, as those of step 6 are NaN
    assert f"Largest gradient: {largest}, norm {norms[largest]:.3g} (at step 5" in message
    assert "Not finite: 4 of 4 gradients" in message
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, recorder.steps[-1][name])


def test_names_the_largest_of_the_gradients_that_are_left():
    class Partly(Small):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss + math.inf + 1000 * self.head.bias.sum() + 10 * self.head.weight.sum()

    with pytest.raises(NonFiniteLoss, match=r"is inf.*Largest gradient: head\.bias, norm 1\.41e\+03\. Lower"):
        train(Partly(), [NonFiniteGuard()], 3)


def test_late_looks_name_the_first_bad_step():
    module = Poisoned([3, 4, 5, 6, 7, 8, 9, 10, 11])
    with pytest.raises(NonFiniteLoss, match=r"step 4 is nan; after step 9 weights are spoiled.*none was written yet"):
        train(module, [NonFiniteGuard(every_n_steps=10)], 20)


def test_a_checkpoint_of_spoiled_weights_is_never_written(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, save_last=True)
    with pytest.raises(NonFiniteLoss, match=r"step 6 is nan.*spoiled"):
        train(Poisoned([5]), [NonFiniteGuard(every_n_steps=100), checkpoint], 20, enable_checkpointing=True)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["epoch=0-step=4.ckpt", "last.ckpt"]
    for path in tmp_path.iterdir():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_gradients_that_overflow_under_a_finite_loss_are_caught_at_the_checkpoint(tmp_path):
    class Overflowing(Small):
        def on_after_backward(self):
            if self.trainer.global_step == 3:
                self.head.bias.grad.fill_(math.inf)

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(NonFiniteLoss, match="After optimizer step 4 the weights are not finite"):
        train(Overflowing(), [NonFiniteGuard(), checkpoint], 10, enable_checkpointing=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_the_end_of_the_fit_is_looked_at_too():
    with pytest.raises(NonFiniteLoss, match="step 4 is nan"):
        train(Poisoned([3]), [NonFiniteGuard(every_n_steps=100)], 6)


def test_skips_and_counts():
    logger, recorder, module = MemoryLogger(), Recorder(), Poisoned([2, 5, 6])
    guard = NonFiniteGuard(action="skip")
    train(module, [guard, recorder], 10, logger=logger)
    assert finite(module)
    assert recorder.moved("head.weight") == [i not in (2, 5, 6) for i in range(10)]
    assert logger.series("skipped_steps") == [(2, 1), (5, 2), (6, 3)]
    assert guard.state_dict() == {"skipped": 3, "in_a_row": 0}


def test_one_bad_micro_batch_skips_its_window():
    recorder = Recorder()
    train(Poisoned([3]), [NonFiniteGuard(action="skip"), recorder], 4, accumulate_grad_batches=2)
    assert recorder.moved("head.weight") == [True, False, True, True]


def test_too_many_skips_in_a_row_stop():
    with pytest.raises(NonFiniteLoss, match="after 3 skipped in a row"):
        train(Poisoned(range(4, 20)), [NonFiniteGuard(action="skip", max_skips=3)], 20)


def test_a_healthy_run_is_untouched():
    plain, guarded = Recorder(), Recorder()
    train(Small(), [plain], 6)
    train(Small(), [NonFiniteGuard(), NonFiniteGuard(action="skip"), guarded], 6)
    for a, b in zip(plain.steps, guarded.steps, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_gradient_norms():
    module = Small()
    module.head.weight.grad = torch.full((2, 8), 2.0)
    names, norms = gradient_norms(module)
    assert names == ["head.weight"]
    assert norms[0] == pytest.approx(8.0)


@pytest.mark.parametrize(
    "arguments",
    [{"action": "ignore"}, {"every_n_steps": 0}, {"action": "skip", "every_n_steps": 5}, {"max_skips": 0}],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(list(arguments.values())[-1])):
        NonFiniteGuard(**arguments)


class NotedOnDevice(NonFiniteGuard):
    """Takes the way of accelerators: a note on the device, read now and then."""

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        self._first = torch.full((), 2**31 - 1, dtype=torch.int32)


def test_the_note_on_the_device_keeps_the_first_bad_step():
    with pytest.raises(NonFiniteLoss, match="step 4 is not finite; after step 9 weights are spoiled"):
        train(Poisoned([3, 6]), [NotedOnDevice(every_n_steps=10)], 20)
    recorder = Recorder()
    train(Poisoned([2, 5]), [NotedOnDevice(action="skip"), recorder], 8)
    assert recorder.moved("head.weight") == [i not in (2, 5) for i in range(8)]
