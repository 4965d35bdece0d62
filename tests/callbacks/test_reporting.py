from types import SimpleNamespace

import numpy as np

from cubelet.callbacks import DynamicBase
from cubelet.callbacks.reporting import due, heat_map, label, log_histogram, log_text, wants_pictures
from tests.reference.callbacks import MemoryLogger, Small, train


def trainer(*loggers, **facts):
    defaults = {"loggers": loggers, "is_global_zero": True, "fast_dev_run": False, "global_step": 7}
    return SimpleNamespace(**(defaults | facts))


def test_due_when_a_multiple_was_passed():
    assert [step for step in range(1, 12) if due(step - 1, step, 4)] == [4, 8]
    assert [step for step in range(2, 14, 2) if due(step - 2, step, 5)] == [6, 10]  # two optimizers: steps of two
    assert not any(due(step - 1, step, 0) for step in range(5))


def test_heat_maps_are_dark_to_bright_from_the_bottom_row_up():
    image = heat_map([[0.0, 1.0], [2.0, np.nan]], cell=3)
    assert image.shape == (6, 6, 3)
    assert image.dtype == np.uint8
    bottom_left, bottom_right, top_left, top_right = image[5, 0], image[5, 5], image[0, 0], image[0, 5]
    assert bottom_left.tolist() == [68, 1, 84]
    assert top_left.tolist() == [253, 231, 37]
    assert bottom_right.tolist() == [33, 144, 141]
    assert top_right.tolist() == [128, 128, 128]
    assert (heat_map(np.full((2, 2), 3.0)) == heat_map(np.zeros((2, 2)))).all()
    assert heat_map(np.full((1, 1), 5.0), low=0.0, high=10.0)[0, 0].tolist() == [33, 144, 141]


def test_pictures_go_only_where_they_can_and_only_from_rank_zero():
    rich, plain = MemoryLogger(), MemoryLogger(pictures=False)
    assert log_text(trainer(plain, rich), "tag", "text")
    assert rich.experiment.texts == [("tag", "text")]
    assert not log_text(trainer(plain), "tag", "text")
    assert wants_pictures(trainer(plain, rich))
    assert not wants_pictures(trainer(plain))
    assert not wants_pictures(trainer(rich, is_global_zero=False))
    assert not wants_pictures(trainer(rich, fast_dev_run=True))


def test_histograms_leave_out_what_is_not_finite():
    logger = MemoryLogger()
    log_histogram(trainer(logger), "tag", [1.0, np.nan, 2.0])
    log_histogram(trainer(logger), "tag", [np.nan])
    assert [values.tolist() for _, values in logger.experiment.histograms] == [[1.0, 2.0]]


def test_labels_number_the_instances_of_a_class():
    one, two, other = MemoryLogger(), MemoryLogger(), SimpleNamespace()
    owner = SimpleNamespace(callbacks=[one, other, two])
    assert [label(owner, callback, "x") for callback in (one, two, other)] == ["x", "x_2", "x"]


def test_values_stand_where_lightning_puts_its_own():
    logger = MemoryLogger()

    class Logging(Small):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

    train(Logging(), [DynamicBase(every_n_steps=5)], 20, logger=logger, log_every_n_steps=5, accumulate_grad_batches=2)
    steps = [step for step, _ in logger.series("train_loss")]
    assert steps == [4, 9, 14, 19]
    assert [step for step, _ in logger.series("base")] == [0, *steps]
