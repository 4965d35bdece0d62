import lightning as L
import pytest
import torch

from cubelet.callbacks import ScheduleFreeModes
from tests.reference.callbacks import MemoryLogger, Small, train


class Averaged(torch.optim.SGD):
    """The smallest optimizer with two sets of weights: it trains at one point and evaluates at the running mean."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.modes = []
        self.point = None
        self.count = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.count += 1
        for param in self.param_groups[0]["params"]:
            mean = self.state[param].setdefault("mean", param.detach().clone())
            mean.lerp_(param.detach(), 1 / self.count)
        return loss

    def _swap(self, mode):
        if mode != (self.modes[-1] if self.modes else "train"):
            for param in self.param_groups[0]["params"]:
                if "mean" in self.state[param]:
                    held = param.detach().clone()
                    param.data.copy_(self.state[param]["mean"])
                    self.state[param]["mean"] = held
        self.modes.append(mode)

    def train(self):
        self._swap("train")

    def eval(self):
        self._swap("eval")


class Watched(Small):
    """Notes the mode in which each hook finds the optimizer."""

    def training_step(self, *args, **kwargs):
        self.hooks = [*getattr(self, "hooks", []), ("train", self.optimizers().optimizer.modes[-1])]
        return super().training_step(*args, **kwargs)

    def validation_step(self, batch, batch_idx):
        self.hooks = [*getattr(self, "hooks", []), ("val", self.optimizers().optimizer.modes[-1])]


def test_trains_in_train_mode_validates_and_ends_in_eval_mode(tmp_path):
    module = Watched(Averaged, rows=4)
    loader = torch.utils.data.DataLoader(torch.zeros(2, 1, dtype=torch.long))
    trainer = L.Trainer(
        max_epochs=2, callbacks=[ScheduleFreeModes()], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, module.train_dataloader(), loader)
    assert {hook for hook, _ in module.hooks} == {"train", "val"}
    assert all(mode == {"train": "train", "val": "eval"}[hook] for hook, mode in module.hooks)
    assert trainer.optimizers[0].modes[-1] == "eval"


def test_other_optimizers_leave_it_idle_or_raise(tmp_path):
    train(Small(lambda p: torch.optim.SGD(p, 0.1)), [ScheduleFreeModes()], 2, logger=MemoryLogger(tmp_path))
    with pytest.raises(ValueError, match="no optimizer has train"):
        train(
            Small(lambda p: torch.optim.SGD(p, 0.1)), [ScheduleFreeModes(strict=True)], 2, logger=MemoryLogger(tmp_path)
        )
