"""DDP that synchronises buffers at the start and never in a forward, without a warning."""

import warnings

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from cubelet.lightning_modules.data_parallel import DataParallel


def fit(strategy):
    class Sees(BoringModel):
        def on_train_start(self):
            seen.append(self.trainer.model)

    seen = []
    Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    ).fit(Sees())  # fmt: skip
    torch.distributed.destroy_process_group()
    return seen[0]


def test_no_buffer_is_sent_before_a_forward_and_torch_has_nothing_to_warn_of():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*broadcast_buffers.*")
        wrapped = fit(DataParallel(process_group_backend="gloo"))
    assert not wrapped.will_sync_module_buffers()
    assert wrapped.gradient_as_bucket_view
    assert not getattr(wrapped, "forward_sync_buffers", wrapped.broadcast_buffers)
