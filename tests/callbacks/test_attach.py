"""The callbacks on other people's models and trainers."""

import copy
import pickle

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.demos import Transformer
from lightning.pytorch.demos.boring_classes import BoringModel

from cubelet.callbacks import (
    DynamicBase,
    FAMMonitor,
    NonFiniteGuard,
    ParameterCycler,
    RotationMonitor,
    RunSummary,
    SpanController,
    SpanQLearning,
    TextSamples,
    WindowController,
)
from tests.reference.callbacks import FakeFAM, MemoryLogger, Small, train


def everything(patterns="weight"):
    return [
        ParameterCycler(patterns, order="permutation"), DynamicBase(every_n_steps=2), FAMMonitor(every_n_steps=2),
        RotationMonitor(every_n_steps=2), TextSamples(), RunSummary(), NonFiniteGuard(), WindowController(),
        SpanController(), SpanQLearning(),
    ]  # fmt: skip


class LanguageDemo(pl.LightningModule):
    """The transformer of Lightning's demos on random tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=20, ninp=16, nhead=2, nhid=16, nlayers=1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.nll_loss(self.model(batch[:, :-1], batch[:, 1:]), batch[:, 1:].reshape(-1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self):
        tokens = torch.randint(20, (32, 9), generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(tokens, batch_size=4)


@pytest.mark.filterwarnings("ignore:.*is idle")
def test_on_the_demos_of_lightning(tmp_path, capsys):
    for module, members in ((LanguageDemo(), 12), (BoringModel(), 1)):
        callbacks = copy.deepcopy(everything())
        before = [p.detach().clone() for p in module.parameters()]
        train(module, callbacks, 5, logger=MemoryLogger(tmp_path))
        assert len(callbacks[0].state_dict()["members"][0]) >= members
        assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
        assert "finished at step 5" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*is idle")
def test_models_without_anything_to_act_on_hear_it_once_per_callback(recwarn):
    train(BoringModel(), everything("nothing of this name"), 5)
    idle = [str(warning.message).split(" is idle")[0] for warning in recwarn if " is idle" in str(warning.message)]
    assert sorted(idle) == [
        "DynamicBase", "FAMMonitor", "ParameterCycler", "RotationMonitor", "SpanController", "SpanQLearning",
        "TextSamples", "WindowController",
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["dict", "tensor", "none"])
@pytest.mark.filterwarnings("ignore:.*is idle")
def test_every_output_of_a_training_step(output):
    module = Small(output=output)
    train(module, [DynamicBase(mode="previous", every_n_steps=1, factor=1.1), NonFiniteGuard()], 6)
    assert (float(module.rotary.base) == 10_000) == (output == "none")


class Old(pytorch_lightning.LightningModule):
    """A module of the separate package `pytorch_lightning`, whose classes are others than `lightning.pytorch`'s."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return FakeFAM(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return self.net.train_dataloader()


@pytest.mark.filterwarnings("ignore:.*is idle")
def test_on_a_pytorch_lightning_trainer(tmp_path, capsys):
    module, callbacks = Old(), everything()
    trainer = pytorch_lightning.Trainer(
        callbacks=callbacks, max_steps=6, logger=pytorch_lightning.loggers.CSVLogger(tmp_path, name="", version="run"),
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", log_every_n_steps=2,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module)
    assert callbacks[1].trend.reference is not None
    assert list(callbacks[1].values) == ["net.rotary"]
    assert callbacks[0].state_dict()["steps"] == [6]
    assert len((tmp_path / "run" / "fam.jsonl").read_text().splitlines()) == 9
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"base", "cycler", "fam/alpha/default"} <= set(header.split(","))
    assert "finished at step 6" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*is idle")
def test_states_are_plain_and_load_with_weights_only(tmp_path):
    trainer = train(Small(lambda p: FakeFAM(p, lr=0.1)), everything(), 5)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    states = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert len(states) == 9  # all but RunSummary, which has nothing to keep

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or isinstance(value, int | float | str)

    assert all(plain(state) for state in states.values())


def test_callbacks_can_be_copied_and_pickled_before_and_after_a_fit():
    callbacks = [DynamicBase(every_n_steps=1), ParameterCycler("weight"), NonFiniteGuard()]
    copy.deepcopy(callbacks)
    pickle.loads(pickle.dumps(callbacks))
    train(Small(), callbacks, 3)
    for callback in callbacks:
        held = [value for value in vars(callback).values() if isinstance(value, torch.nn.Module | torch.Tensor)]
        assert not [value for value in held if isinstance(value, torch.nn.Module)]


def test_fits_twice_with_the_same_callbacks():
    callbacks = [DynamicBase(mode="previous", every_n_steps=1, factor=1.1), ParameterCycler("weight")]
    for _ in range(2):
        module = Small()
        train(module, callbacks, 3)
        assert float(module.rotary.base) != 10_000
    assert callbacks[1].state_dict()["steps"] == [3]  # a new run starts anew


def test_on_a_barebones_trainer():
    module = Small()
    trainer = pl.Trainer(barebones=True, max_steps=4, accelerator="cpu", limit_val_batches=0, callbacks=[
        ParameterCycler("weight"), DynamicBase(mode="previous", every_n_steps=1), NonFiniteGuard(),
    ])  # fmt: skip
    trainer.fit(module)
    assert float(module.rotary.base) != 10_000


@pytest.mark.filterwarnings("ignore:.*is idle")
def test_a_resumed_run_ends_with_the_same_weights_and_states(tmp_path):
    optimizers = pytest.importorskip("cubelet.optimizers")

    def run(steps, folder, **arguments):
        module = Small(
            lambda parameters: optimizers.FAM(parameters, lr=0.05, start_step=3, min_size=8, analyse_every=2), rows=4
        )
        callbacks = everything()
        trainer = train(module, callbacks, steps, logger=MemoryLogger(folder), **arguments)
        return module, [callback.state_dict() for callback in callbacks], trainer

    whole, states, _ = run(23, tmp_path / "logs")
    _, _, trainer = run(11, tmp_path / "logs")
    trainer.save_checkpoint(tmp_path / "eleven.ckpt")
    resumed, after, _ = run(23, tmp_path / "logs", ckpt_path=tmp_path / "eleven.ckpt")
    assert after == states
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert (tmp_path / "logs" / "fam.jsonl").read_text() == (tmp_path / "logs" / "fam.1.jsonl").read_text()
