"""Probes: they find the minimum of a noisy loss that followers of the training loss do not find, and leave no trace."""

import math
import random

import pytest
import torch
from torch import nn

from cubelet.callbacks import DynamicBase, SpanController, WindowController
from cubelet.callbacks.loss_probe import SlopeDescent
from tests.reference.callbacks import MemoryLogger, Small, train

BEST = 300.0
PROBE = {"mode": "probe", "every_n_steps": 1, "min_base": 2.0, "max_base": 1e7}


class Valley(Small):
    """The loss is lowest at a base of 300, and a batch adds far more noise than a step away from it."""

    def __init__(self, start: float = 10_000.0, **arguments):
        super().__init__(**arguments)
        self.rotary.set_base(start)
        self.dropout, self.calls = nn.Dropout(0.5), []

    def loss(self, batch):
        self.calls.append((self.training, self.dropout.training, float(torch.rand(()))))
        noise = float(batch.sum()) - 0.02 * float(batch[0, 0]) * math.log(float(self.rotary.base))
        return {"loss": torch.tensor(noise + 0.01 * math.log(float(self.rotary.base) / BEST) ** 2)}

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        return {"loss": out["loss"] - out["loss"].detach() + self.loss(batch)["loss"]}


@pytest.mark.parametrize("start", [10.0, 10_000.0, 1e6])
def test_a_probe_finds_the_best_base_from_anywhere(start):
    module = Valley(start)
    train(module, [DynamicBase(**PROBE)], 200)
    assert BEST / 3 < float(module.rotary.base) < BEST * 3


@pytest.mark.parametrize("mode", ["previous", "best"])
def test_followers_of_the_loss_do_not(mode):
    module = Valley(1e6)
    train(module, [DynamicBase(**PROBE | {"mode": mode, "factor": 1.35})], 200)
    assert not BEST / 3 < float(module.rotary.base) < BEST * 3


def test_a_probe_costs_two_evaluations_with_equal_random_numbers_and_leaves_no_trace():
    class Watched(Valley):
        def on_train_batch_end(self, *_):
            self.modes = [part.training for part in self.modules()]
            self.state = torch.get_rng_state()

    module, logger = Watched(), MemoryLogger()
    module.head.eval()  # a frozen part stays as it is
    before = {name: value.clone() for name, value in module.state_dict().items() if name != "rotary.base"}
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    modes, states = [], []

    class Check(DynamicBase):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            modes.append([part.training for part in pl_module.modules()])
            states.append(torch.get_rng_state())
            super().on_train_batch_end(trainer, pl_module, *rest)
            assert [part.training for part in pl_module.modules()] == modes[-1]
            assert torch.equal(torch.get_rng_state(), states[-1])

    train(module, [Check(**PROBE | {"every_n_steps": 3})], 9, logger=logger)
    probes = [call for call in module.calls if not call[0]]
    assert len(probes) == 2 * 3
    assert not any(dropout for _, dropout, _ in probes)
    assert all(a[2] == b[2] for a, b in zip(probes[::2], probes[1::2], strict=True))
    assert len({number for _, _, number in probes}) == 3
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert [step for step, _ in logger.series("base")] == [0, 2, 5, 8]


def test_a_resumed_probe_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(steps, ckpt_path=None):
        module, callback = Valley(rows=4), DynamicBase(**PROBE | {"every_n_steps": 2})
        return module, callback, train(module, [callback], steps, ckpt_path=ckpt_path)

    whole, expected, _ = run(14)
    _, _, trainer = run(7)
    trainer.save_checkpoint(tmp_path / "seven.ckpt")
    resumed, callback, _ = run(14, tmp_path / "seven.ckpt")
    assert torch.equal(resumed.rotary.base, whole.rotary.base)
    assert callback.state_dict() == expected.state_dict()
    assert float(whole.rotary.base) != 10_000


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.window, self.span = 512, 0.9

    def set_window(self, window):
        self.window = window

    def set_span(self, span):
        self.span = span


def test_windows_and_spans_take_the_same_probe():
    class Two(Small):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def loss(self, batch):
            window, span = math.log(self.attention.window / 64), math.log(self.attention.span / 0.3)
            return torch.tensor(float(batch.sum()) + window**2 + span**2), None

    module = Two()
    train(
        module,
        [
            WindowController(mode="probe", every_n_steps=1, multiple_of=1, min_window=8),
            SpanController(mode="probe", every_n_steps=1),
        ],
        120,
    )
    assert 50 < module.attention.window < 82
    assert 0.23 < module.attention.span < 0.39


def test_the_bounds_hold_and_a_side_that_they_cut_off_is_measured_as_far_as_it_goes():
    module = Valley(20.0)
    train(module, [DynamicBase(**PROBE | {"max_base": 21.0})], 20)
    assert float(module.rotary.base) == 21.0


class Lossless(Small):
    loss = None


def test_a_module_without_a_loss_is_told():
    with pytest.raises(ValueError, match=r"'probe' of DynamicBase evaluates `module.loss\(batch\)`, and Lossless has"):
        train(Lossless(), [DynamicBase(mode="probe")], 1)
    with pytest.raises(ValueError, match=r"width 1.0 must be above 1"):
        DynamicBase(mode="probe", widths=[2.0, 1.0])
    with pytest.raises(ValueError, match="rate 0 must be above 0"):
        DynamicBase(mode="probe", rate=0)


def test_steps_are_normalised_and_noise_moves_little():
    draw = random.Random(0)
    steady, noise = SlopeDescent(0.1), SlopeDescent(0.1)
    assert sum(steady.step(1e-6) for _ in range(100)) == pytest.approx(-10.0, rel=1e-3)
    path = [noise.step(draw.gauss(0, 1.0)) for _ in range(100)]
    assert max(map(abs, path)) <= 0.1
    assert abs(sum(path)) < 2.5
    assert steady.step(math.nan) == 0.0
