"""Lightning's search for a learning rate works on the project's modules."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from cubelet.lightning_modules import LanguageModel
from cubelet.optimizers import WarmupCosine

ROWS = [{"tokens": torch.arange(9) % 7, "targets": torch.arange(1, 10) % 7}] * 200


def trainer(tmp_path, *callbacks):
    return Trainer(
        accelerator="cpu", max_steps=60, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0, callbacks=list(callbacks),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_rate_is_found_set_and_used(tmp_path):
    model = LanguageModel(7, dims=16, layers=1, heads=2, scheduler=partial(WarmupCosine, warmup=5))
    assert model.lr == 3e-3
    finder = Tuner(trainer(tmp_path)).lr_find(model, DataLoader(ROWS, 2), num_training=40)
    assert model.lr == finder.suggestion() != 3e-3
    model.trainer = trainer(tmp_path)
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert max(group["initial_lr"] for group in groups) == pytest.approx(model.lr)


@pytest.mark.filterwarnings("ignore")
def test_the_callback_finds_one_before_the_fit(tmp_path):
    model = LanguageModel(7, dims=16, layers=1, heads=2)
    owner = trainer(tmp_path, LearningRateFinder(num_training_steps=40))
    owner.fit(model, DataLoader(ROWS, 2))
    assert owner.global_step == 60
    assert max(group["lr"] for group in owner.optimizers[0].param_groups) == pytest.approx(model.lr)
