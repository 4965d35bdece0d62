"""TokenMean and what uses it: sums by hand at every precision, batch size and number of ranks."""

import math
from functools import partial

import lightning as L
import pytest
import torch

from cubelet.callbacks.loss_callback import LossCallback
from cubelet.callbacks.run_metrics import RunMetrics
from cubelet.datamodules import SyntheticDataModule
from cubelet.lightning_modules import LanguageModel
from cubelet.lightning_modules.token_mean import TokenMean
from tests.reference.nudge import nudge


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float32])
def test_the_mean_is_the_sum_by_hand_whatever_the_types(dtype, default):
    torch.manual_seed(0)
    losses, counts = torch.rand(1000).to(dtype), torch.randint(0, 100, (1000,))
    mean, before = TokenMean(), torch.get_default_dtype()
    torch.set_default_dtype(default)  # as Lightning does under bf16-true
    try:
        for loss, count in zip(losses, counts, strict=True):
            mean.update(torch.where(count > 0, loss, torch.nan), count)
        found = mean.compute()
    finally:
        torch.set_default_dtype(before)
    by_hand = sum(float(loss) * int(count) for loss, count in zip(losses, counts, strict=True)) / int(counts.sum())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(by_hand, rel=1e-6)
    assert mean.compute().isnan()  # it starts over


class Losses(LossCallback):
    """Keeps the mean losses that controllers get to see."""

    def __init__(self):
        super().__init__(every_n_steps=300, average="interval", strict=False)
        self.means = []

    def acts(self):
        return True

    def on_loss(self, trainer, module, loss):
        self.means.append(loss)


class Recorder(L.Callback):
    """Losses and counts as the model gave them, each read at once."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(float(outputs["train_loss"]))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        with trainer.precision_plugin.forward_context():
            self.val.append((float(pl_module.loss(batch)[0]), int((batch["targets"] != -100).sum())))

    on_test_batch_end = on_validation_batch_end


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "16-true", "64-true"])
def test_every_mean_of_a_run_is_the_sum_by_hand_at_every_precision(precision, tmp_path):
    # 300 batches, more than the 256 at which a sum in bfloat16 stops.
    data = SyntheticDataModule("recall", 16, 2, symbols=8, val_batches=300, batches_per_epoch=300)
    still = partial(torch.optim.SGD, lr=0.0)
    model = nudge(LanguageModel(data.vocab_size, dims=8, layers=1, heads=2, optimizer=still))
    seen, losses, measures = Recorder(), Losses(), RunMetrics(lengths=[1], every_n_steps=300)
    trainer = L.Trainer(
        accelerator="cpu", precision=precision, max_steps=300, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        callbacks=[seen, losses, measures],
    )  # fmt: skip
    trainer.fit(model, data)
    logged = trainer.callback_metrics
    by_hand = sum(loss * count for loss, count in seen.val) / sum(count for _, count in seen.val)
    assert len(seen.val) >= 300
    assert float(logged["val_loss"]) == pytest.approx(by_hand, rel=1e-6)
    assert float(logged["val_perplexity"]) == pytest.approx(math.exp(by_hand), rel=1e-5)
    assert measures._val == [[300, pytest.approx(measures._cpu), pytest.approx(by_hand, rel=1e-6)]]
    train = sum(seen.train) / len(seen.train)
    assert losses.means == [pytest.approx(train, rel=1e-6)]
    assert [row[2] for row in measures._train] == [pytest.approx(train, rel=1e-6)]
    seen.val.clear()
    (tested,) = trainer.test(model, data, verbose=False)
    by_hand = sum(loss * count for loss, count in seen.val) / sum(count for _, count in seen.val)
    assert tested["test_loss"] == pytest.approx(by_hand, rel=1e-6)
