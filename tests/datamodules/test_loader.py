"""Batches against the slow reference; and that no way of stopping and resuming changes what is seen."""

import logging
import pickle
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from cubelet.datamodules import TextDataModule, TrainingLoader, TrainingWindows, ValidationWindows, WindowDataset
from cubelet.datamodules.loader import WindowLoader
from tests.reference.data import slow_batch, slow_offset

CONTEXT, ROWS = 16, 6


@pytest.fixture
def tokens(tmp_path):
    values = np.random.default_rng(0).integers(0, 90, size=421, dtype=np.uint8)
    np.save(tmp_path / "tokens.npy", values)
    return tmp_path / "tokens.npy", values.tolist()


def training_loader(path, **options):
    windows = WindowDataset(path, CONTEXT)
    return TrainingLoader(windows, TrainingWindows(len(windows), CONTEXT, 3, seed=4), **options)


def as_lists(batch):
    return batch["tokens"].tolist(), batch["targets"].tolist()


def test_training_batches_are_the_reference(tokens):
    path, text = tokens
    loader = training_loader(path)
    for epoch in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 8  # 25 windows a pass, 3 rows
        for i, batch in enumerate(batches):
            offsets = [slow_offset(4, epoch, 3 * i + row, len(text), CONTEXT) for row in range(3)]
            assert as_lists(batch) == slow_batch(text, offsets, CONTEXT)
            assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
            assert batch["tokens"].is_contiguous()
            assert batch["targets"].is_contiguous()


@pytest.mark.parametrize("length", [2, 16, 17, 18, 100, 421])
def test_validation_batches_are_the_reference_with_minus_100_past_the_end(tokens, tmp_path, length):
    text = tokens[1][:length]
    np.save(tmp_path / "val.npy", np.array(text, dtype=np.uint8))
    loader = WindowLoader(WindowDataset(tmp_path / "val.npy", CONTEXT), ValidationWindows(length, CONTEXT, 4))
    targets = []
    for i, batch in enumerate(loader):
        offsets = [CONTEXT * (loader.batch_size * i + row) for row in range(loader.batch_size)]
        assert as_lists(batch) == slow_batch(text, offsets, CONTEXT)
        targets += [t for row in batch["targets"].tolist() for t in row if t != -100]
    assert targets == text[1:]
    assert [as_lists(b) for b in loader] == [as_lists(b) for b in loader]


def test_workers_change_nothing(tokens):
    alone = [as_lists(b) for b in training_loader(tokens[0])]
    assert [as_lists(b) for b in training_loader(tokens[0], num_workers=2)] == alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_counts_what_was_handed_out_not_what_was_prefetched(tokens, num_workers):
    whole = training_loader(tokens[0])
    seen = [as_lists(b) for _ in range(3) for b in whole]
    loader = training_loader(tokens[0], num_workers=num_workers)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    state = loader.state_dict()
    assert state["batches"] == 3
    again = training_loader(tokens[0], num_workers=num_workers)
    again.load_state_dict(state)
    assert [as_lists(b) for b in again] == seen[3:8]  # the rest of the epoch,
    assert [as_lists(b) for b in again] == seen[8:16]  # then whole ones
    assert again.state_dict()["batches"] == 16


def test_an_unused_iterator_costs_nothing(tokens):
    loader = training_loader(tokens[0])
    first = as_lists(next(iter(training_loader(tokens[0]))))
    iter(loader), iter(loader)
    assert loader.state_dict()["batches"] == 0
    assert as_lists(next(iter(loader))) == first


def test_changed_order_is_said_when_resuming(tokens):
    state = training_loader(tokens[0]).state_dict()
    windows = WindowDataset(tokens[0], CONTEXT)
    other = TrainingLoader(windows, TrainingWindows(len(windows), CONTEXT, 6, seed=5))
    with pytest.warns(UserWarning, match=r"seed 4 → 5, global_batch 3 → 6, batches_per_epoch 8 → 4"):
        other.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Two ranks with half the rows make the same global batches.
        TrainingLoader(windows, TrainingWindows(421, CONTEXT, 3, seed=5, world_size=2)).load_state_dict(
            other.state_dict()
        )


def test_global_random_state_is_left_alone(tokens):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        list(training_loader(tokens[0], num_workers=num_workers))
    assert torch.equal(before, torch.get_rng_state())


def test_dataset_travels_by_path_not_by_value(tokens):
    windows = WindowDataset(tokens[0], CONTEXT)
    sent = pickle.dumps(windows)
    assert len(sent) < 600
    assert torch.equal(pickle.loads(sent)[np.array([5, 9])]["targets"], windows[np.array([5, 9])]["targets"])


# Through Lightning: every place at which a checkpoint can be written, in a zoo of Trainers.


class Watcher(pl.LightningModule):
    """Keeps what it was given; fails once where it is told to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.fail_at = [], fail_at

    def training_step(self, batch, index):
        if len(self.seen) == self.fail_at:
            raise KeyError("stopped on purpose")
        self.seen.append(batch["tokens"].tolist())
        return (self.weight * batch["tokens"].float().mean()).sum()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(pl.Callback):
    def __init__(self, folder):
        self.folder, self.saved = folder, []

    def save(self, trainer, hook):
        if not trainer.sanity_checking:
            seen = len(trainer.lightning_module.seen)
            self.saved.append((self.folder / f"{hook}-{seen}.ckpt", seen))
            trainer.save_checkpoint(self.saved[-1][0])

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")

    def on_exception(self, trainer, *_):
        self.save(trainer, "exception")


@pytest.fixture
def quiet():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def fit(text, cache, folder, *, checkpoint=None, save=False, fail_at=None, data=None, **options):
    data = data or {}
    module, saver = Watcher(fail_at), SaveEverywhere(folder)
    flags = {"num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver] if save else [],
        default_root_dir=folder,
        **flags,
    )
    datamodule = TextDataModule(str(text), context_length=CONTEXT, batch_size=ROWS, cache_dir=str(cache), **data)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except KeyError:
        assert fail_at is not None
    return module.seen, saver.saved


TRAINERS = [  # options, and how many batches they come to: an epoch is 54 windows in 9 batches
    ({"max_epochs": 3}, 27),
    ({"max_steps": 20}, 20),
    ({"max_epochs": 3, "accumulate_grad_batches": 2}, 27),
    ({"max_steps": 10, "accumulate_grad_batches": 2}, 18),
    ({"max_epochs": 3, "limit_train_batches": 5}, 15),
    ({"max_epochs": 2, "val_check_interval": 3}, 18),
    ({"max_steps": 20, "val_check_interval": 4, "check_val_every_n_epoch": None}, 20),
    ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 27),
    ({"max_epochs": 2, "limit_val_batches": 0}, 18),
    ({"max_epochs": 2, "num_sanity_val_steps": 2}, 18),
    ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, 27),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "batches"), TRAINERS, ids=str)
def test_resuming_anywhere_sees_what_the_whole_run_sees(text, cache, tmp_path, quiet, options, batches):
    whole, saved = fit(text, cache, tmp_path, save=True, **options)
    assert len(whole) == batches
    assert len({str(batch) for batch in whole}) == len(whole)
    for path, seen in saved:
        rest, _ = fit(text, cache, tmp_path, checkpoint=path, **options)
        assert rest == whole[seen:], path.name


@pytest.mark.slow
def test_resuming_with_workers(text, cache, tmp_path, quiet):
    options = {"max_epochs": 2, "accumulate_grad_batches": 2}
    whole, saved = fit(text, cache, tmp_path, save=True, data={"num_workers": 2}, **options)
    assert whole == fit(text, cache, tmp_path, **options)[0]
    places = {path.name: (path, seen) for path, seen in saved}
    for name in ("batch-4.ckpt", "batch-9.ckpt", "epoch-9.ckpt", "batch-13.ckpt"):
        path, seen = places[name]
        assert fit(text, cache, tmp_path, checkpoint=path, data={"num_workers": 2}, **options)[0] == whole[seen:]


@pytest.mark.slow
def test_a_batch_whose_step_failed_comes_again(text, cache, tmp_path, quiet):
    whole, _ = fit(text, cache, tmp_path, max_epochs=3)
    before, saved = fit(text, cache, tmp_path, save=True, fail_at=13, max_epochs=3)
    assert before == whole[:13]
    path, seen = saved[-1]
    assert (path.name, seen) == ("exception-13.ckpt", 13)
    state = torch.load(path, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert state["batches"] == 13  # 14 were handed out
    assert fit(text, cache, tmp_path, checkpoint=path, max_epochs=3)[0] == whole[13:]


@pytest.mark.slow
def test_resuming_a_resumed_run(text, cache, tmp_path, quiet):
    whole, _ = fit(text, cache, tmp_path, max_steps=25)
    seen, at = [], None
    for stop in (4, 11, 25):
        part, saved = fit(text, cache, tmp_path, checkpoint=at, save=True, max_steps=stop)
        seen, at = seen + part, saved[-1][0]
    assert seen == whole


def test_overfitting_repeats_the_same_batches(text, cache, tmp_path, quiet):
    seen, _ = fit(text, cache, tmp_path, max_epochs=3, overfit_batches=2)
    assert seen == seen[:2] * 3
    seen, _ = fit(text, cache, tmp_path, max_epochs=3, overfit_batches=0.5, data={"val_batch_size": 2})
    assert seen == seen[:4] * 3


def test_lightning_has_nothing_to_say_about_the_loaders(text, cache, tmp_path, recwarn):
    fit(text, cache, tmp_path, max_epochs=1)
    assert not [str(w.message) for w in recwarn if "loader" in str(w.message) or "workers" in str(w.message)]
