"""A resumed run sees the batches of one that ran through, in projects that know nothing else of cubelet."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from pytorch_lightning.demos.boring_classes import BoringModel as OldBoringModel
from torch.utils.data import Dataset

from cubelet.datamodules.resumable_loader import ResumableLoader


class Rows(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, i):
        return torch.full((32,), float(i))


@pytest.mark.parametrize(("package", "module"), [(pl, BoringModel), (pytorch_lightning, OldBoringModel)])
@pytest.mark.parametrize(("stop", "more"), [(3, {}), (5, {}), (7, {"limit_train_batches": 3}), (8, {"workers": 2})])
def test_an_interrupted_run_sees_the_batches_of_a_whole_one(package, module, stop, more, tmp_path):
    workers = more.pop("workers", 0) if "workers" in more else 0

    def fit(steps, ckpt_path=None):
        class Model(module):
            def train_dataloader(self):
                return ResumableLoader(Rows(), 4, self.trainer, seed=1, num_workers=workers)

            def training_step(self, batch, batch_idx):
                seen.append(batch[:, 0].tolist())
                return super().training_step(batch, batch_idx)

        seen = []
        trainer = package.Trainer(
            max_steps=steps, max_epochs=99, limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path, **more,
        )  # fmt: skip
        trainer.fit(Model(), ckpt_path=ckpt_path)
        return seen, trainer

    whole, _ = fit(13)
    first, trainer = fit(stop)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    rest, _ = fit(13, tmp_path / "x.ckpt")
    assert first + rest == whole
    assert whole[0] != whole[5]  # each epoch in an order of its own
    epoch = [row for batch in whole[:5] for row in batch]
    assert len(set(epoch)) == len(epoch) == 20


def test_ranks_share_the_rows_and_a_loop_of_ones_own_goes_on():
    from types import SimpleNamespace

    class Counting(SimpleNamespace):
        pass

    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    ranks = [
        ResumableLoader(Rows(), 4, Counting(global_rank=r, world_size=2, fit_loop=loop), shuffle=False) for r in (0, 1)
    ]
    assert [loader.rows(0) for loader in ranks] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    alone = ResumableLoader(Rows(), 5, seed=3)
    batches = [batch[:, 0].tolist() for batch in alone]
    assert len(batches) == len(alone) == 4
    other = ResumableLoader(Rows(), 5, seed=3)
    iterator = iter(other)
    assert [next(iterator)[:, 0].tolist() for _ in range(2)] == batches[:2]
    fresh = ResumableLoader(Rows(), 5, seed=3)
    fresh.load_state_dict(other.state_dict())
    assert [batch[:, 0].tolist() for batch in fresh] == batches[2:]
    with pytest.warns(UserWarning, match="seed 3 → 4"):
        ResumableLoader(Rows(), 5, seed=4).load_state_dict(other.state_dict())


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="23 rows, fewer than one batch of 24"):
        ResumableLoader(Rows(), 24)
