from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from cubelet.common.run_folder import run_folder, run_location


def trainer(root, *loggers, fast_dev_run=False):
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(loggers=loggers, default_root_dir=root, fast_dev_run=fast_dev_run, strategy=strategy)


def logger(**facts):
    return SimpleNamespace(**facts)


def test_the_folder_is_the_loggers_or_the_roots(tmp_path):
    assert run_folder(trainer(tmp_path)) == tmp_path
    assert run_folder(trainer(tmp_path, logger(save_dir="/a", name="b", version=3))) == Path("/a/b/version_3")
    assert run_folder(trainer(tmp_path, logger(save_dir="/a", name="", version="x"), logger())) == Path("/a/x")
    assert run_folder(trainer(tmp_path, logger(save_dir=None, name="p", version="id"))) == tmp_path / "p" / "id"


def test_nothing_is_written_locally_for_a_trial_or_on_another_file_system(tmp_path):
    assert run_folder(trainer(tmp_path, fast_dev_run=True)) is None
    remote = trainer("memory://bucket/runs")
    assert run_location(remote) == "memory://bucket/runs"
    assert run_folder(remote) is None


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, None])
def test_checkpoints_of_lightning_lie_in_the_same_folder(kind, tmp_path):
    checkpoint = ModelCheckpoint()
    loggers = kind(tmp_path, name="some", version="one") if kind else False
    owner = Trainer(
        max_steps=1, logger=loggers, callbacks=[checkpoint], default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, accelerator="cpu",
    )  # fmt: skip
    owner.fit(BoringModel())
    assert run_folder(owner) == Path(checkpoint.best_model_path).parent.parent
