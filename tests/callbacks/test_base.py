"""State of callbacks over several fits: a run that begins anew starts anew, a run that goes on goes on."""

import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import cubelet.callbacks as package
from cubelet.callbacks.base import StatefulCallback
from cubelet.callbacks.run_metrics import RunMetrics
from tests.reference.callbacks import FakeFAM, MemoryLogger, Rotary, Rows, Small, train

FACTORIES = {
    "AttentionMaps": lambda: package.AttentionMaps(),
    "DynamicBase": lambda: package.DynamicBase(mode="previous", every_n_steps=2, factor=1.1, average="interval"),
    "FAMMonitor": lambda: package.FAMMonitor(every_n_steps=2),
    "LastCheckpoint": lambda: package.LastCheckpoint(every_n_steps=2),
    "NonFiniteGuard": lambda: package.NonFiniteGuard(action="skip"),
    "ParameterCycler": lambda: package.ParameterCycler("weight", order="random"),
    "RotationMonitor": lambda: package.RotationMonitor(every_n_steps=2),
    "RunMetrics": lambda: RunMetrics(every_n_steps=2),
    "ScheduleFreeModes": lambda: package.ScheduleFreeModes(),
    "SpanController": lambda: package.SpanController(mode="previous", every_n_steps=2),
    "SpanQLearning": lambda: package.SpanQLearning(every_n_steps=3),
    "SpeechSamples": lambda: package.SpeechSamples(),
    "StepSeed": lambda: package.StepSeed(),
    "TextSamples": lambda: package.TextSamples(),
    "WindowController": lambda: package.WindowController(mode="previous", every_n_steps=2, multiple_of=1),
}


class Part(Rotary):
    """Has everything that some callback acts on."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 64
        self.span = 0.5

    def set_window(self, window):
        self.window = window

    def set_span(self, span):
        self.span = span

    def rotation_matrix(self):
        return torch.eye(4)


class Refined(nn.Module):
    def refine(self, loss):
        return loss


class Model(Small):
    def __init__(self) -> None:
        super().__init__(lambda parameters: FakeFAM(parameters, lr=0.1))
        self.rotary = Part()
        self.refined = Refined()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch["tokens"], batch_idx)["loss"]
        self.steps += 1
        if self.steps == 2 and any(isinstance(c, package.NonFiniteGuard) for c in self.trainer.callbacks):
            loss = loss * torch.nan
        return {"loss": loss, "train_loss": loss}

    def train_dataloader(self):
        rows = [{"tokens": row} for row in Rows(64)]
        return torch.utils.data.DataLoader(rows, batch_size=4)

    def sample_text(self, prompt, max_new_tokens, **_):
        return prompt


def fit(callback, folder, trainer=None, module=None, steps=7):
    module = module or Model()
    if trainer is None:
        validate = {"limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}
        logger = MemoryLogger(folder)
        return train(module, [callback], steps, logger=logger, enable_checkpointing=True, **validate), module
    trainer.fit_loop.epoch_loop.max_steps = steps
    trainer.fit(module)
    return trainer, module


def kept(callback):
    """A callback's state without clocks, drawn seeds and folders."""
    state = callback.state_dict()
    if isinstance(callback, RunMetrics):
        return {k: [(step, loss) for step, _, loss in state[k]] for k in ("val", "train")} | {"sum": state["sum"]}
    return {k: v for k, v in state.items() if k not in ("path", "last_model_path", "seed")}


def test_every_callback_with_a_state_is_tried():
    classes = {item for item in vars(package).values() if isinstance(item, type) and issubclass(item, StatefulCallback)}
    assert {c.__name__ for c in classes} - {"LossCallback", "LossController"} | {"RunMetrics"} == FACTORIES.keys()


@pytest.mark.parametrize("name", FACTORIES)
def test_a_second_run_with_the_same_instance_is_as_with_a_new_one(name, tmp_path):
    used, fresh = FACTORIES[name](), FACTORIES[name]()
    fit(used, tmp_path / "first", steps=10)
    _, module = fit(used, tmp_path / "second")
    _, expected = fit(fresh, tmp_path / "fresh")
    assert kept(used) == kept(fresh)
    assert module.rotary.window == expected.rotary.window
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


@pytest.mark.parametrize("name", FACTORIES)
def test_fitting_again_on_the_same_trainer_goes_on(name, tmp_path):
    callback = FACTORIES[name]()
    trainer, module = fit(callback, tmp_path, steps=6)
    ended, seen = callback.state_dict(), []

    class Spy(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(callback.state_dict())

    trainer.callbacks.append(Spy())
    fit(callback, tmp_path, trainer, module, steps=12)
    assert trainer.global_step == 12
    assert seen == [ended]


def test_a_seed_that_was_drawn_is_drawn_again_for_the_next_run(tmp_path, monkeypatch):
    callback = package.StepSeed()
    seeds = []
    for run in (1, 2):
        module = Model()
        torch.manual_seed(run)
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        fit(callback, tmp_path / str(run), module=module)
        seeds.append(callback.seed)
    assert seeds[0] != seeds[1]
    fixed = package.StepSeed(5)
    fit(fixed, tmp_path / "fixed")
    assert fixed.seed == 5


def test_a_state_that_the_user_loaded_counts_for_the_first_run(tmp_path):
    callback = package.NonFiniteGuard()
    callback.load_state_dict({"skipped": 4, "in_a_row": 0})
    fit(callback, tmp_path / "run", module=Small())
    assert callback.skipped == 4


def test_keys_are_those_of_the_first_release():
    assert package.SpanQLearning().state_key == "SpanRefinement{'every_n_steps': 25, 'average': 'interval'}"
    assert package.StepSeed(3).state_key == "StepSeed{}"
    assert package.LastCheckpoint().state_key == "LastCheckpoint{'name': 'last'}"
    assert package.DynamicBase().state_key == (
        "DynamicBase{'mode': 'ema', 'dead_zone': 0.005, 'decay': 0.9, 'factor': 1.0025, 'every_n_steps': 25, "
        "'minimum': 100.0, 'maximum': 1000000.0, 'average': 'step', 'better': 1, 'targets': ['offered']}"
    )
    assert package.WindowController().state_key == (
        "WindowController{'mode': 'ema', 'dead_zone': 0.005, 'decay': 0.9, 'factor': 1.05, 'every_n_steps': 25, "
        "'minimum': 16, 'maximum': 4096, 'average': 'step', 'better': -1, 'multiple_of': 16}"
    )
    assert RunMetrics().state_key == "Measures"


def test_the_key_is_computed_once_and_survives_a_copy():
    class Counting(StatefulCallback):
        calls = 0

        def identity(self):
            Counting.calls += 1
            return {}

    callback = Counting()
    assert callback.state_key == copy.deepcopy(callback).state_key == callback.state_key
    assert Counting.calls == 1


def test_only_fits_that_begin_start_anew():
    class Counter(StatefulCallback):
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    counter = Counter()
    for stage, step, expected in (("fit", 0, 0), ("validate", 0, 1), ("fit", 5, 2), ("fit", 0, 0)):
        counter.setup(SimpleNamespace(global_step=step), None, stage)
        assert counter.count == expected, (stage, step)
        counter.count += 1
