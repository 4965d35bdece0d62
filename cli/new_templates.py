"""What `cubelet new` writes: for each kind a component that trains, its test, a configuration and an experiment.

`MyIdea` stands for the class, `my_idea` for its module. Everything else is as the user will read it.
"""

from typing import NamedTuple


class Template(NamedTuple):
    """Texts of the files, and what the component is called in a sentence."""

    component: str
    test: str
    config: str
    variant: str  # items of the experiment's variant, below its configuration


ROTARY = '''"""A rotary position encoding of your own."""

from torch import Tensor

from cubelet.models.rotary import Rotary


class MyIdea(Rotary):
    """RoPE with slower or faster frequencies: pair m turns by base^(-power * 2m/c) a position.

    Args:
        dims, heads: width and number of heads; the model hands them over.
        power: 1 is RoPE.
        options: `base`, `scaling`; see `Rotary`.
    """

    def __init__(self, dims: int, heads: int, *, power: float = 0.9, **options) -> None:
        super().__init__(dims, heads, **options)
        self.power = power

    def frequencies(self, length: Tensor | None = None) -> Tensor:  # (c/2,) radians a position
        return super().frequencies(length) ** self.power
'''

ROTARY_TEST = '''"""What every rotary must hold, for MyIdea: own tokens only, chunks, padding, copies, gradients."""

import pytest
from cubelet.testing import ROTARY_CHECKS
from my_idea import MyIdea


@pytest.mark.parametrize("check", ROTARY_CHECKS, ids=lambda check: check.__name__)
def test_my_idea_holds_what_rotaries_hold(check):
    check(lambda: MyIdea(dims=24, heads=2))


def test_power_1_is_rope():
    from cubelet.models.rotary import RoPE

    assert MyIdea(24, 2, power=1.0).frequencies().equal(RoPE(24, 2).frequencies())
'''

ATTENTION = '''"""An attention of your own."""

import torch
from cubelet.models.attention import ProjectedAttention, masked_attention
from torch import nn


class MyIdea(ProjectedAttention):
    """Attention with a learned temperature per head: softmax(t_h q k / sqrt(c)) v.

    Args:
        dims, heads: width and number of heads; the model hands them over.
        start: initial temperature of every head.
        options: see `ProjectedAttention`.
    """

    def __init__(self, dims: int, heads: int, *, start: float = 1.0, **options) -> None:
        super().__init__(dims, heads, **options)
        self.start = start
        self.temperature = nn.Parameter(torch.full((heads,), start))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.temperature, self.start)

    def attend(self, x, q, k, v, scope):
        return masked_attention(q * self.temperature[:, None, None], k, v, scope)  # (b, h, s, c)
'''

MODULE_TEST = '''"""What every KIND must hold, for MyIdea: causality, cache, padding, documents, copies, gradients."""

import pytest
from cubelet.testing import CHECKS
from my_idea import MyIdea


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_my_idea_holds_what_KINDs_hold(check):
    check(lambda: MyIdea(32, 4))
'''

BLOCK = '''"""A block of your own."""

import torch
from cubelet.models.blocks import ResidualBlock
from torch import nn


class MyIdea(ResidualBlock):
    """A residual block whose attention and MLP read the stream through a learned gain per feature.

    Args:
        dims, heads: width and number of heads; the model hands them over.
        options: see `ResidualBlock`.
    """

    def __init__(self, dims: int, heads: int, **options) -> None:
        super().__init__(dims, heads, **options)
        self.gain = nn.Parameter(torch.ones(2, dims))

    def attention_input(self, x, *arguments):  # (b, s, dims)
        return super().attention_input(x, *arguments) * self.gain[0]

    def mlp_input(self, x, *arguments):  # (b, s, dims)
        return super().mlp_input(x, *arguments) * self.gain[1]
'''

OPTIMIZER = '''"""An optimizer of your own."""

import torch


class MyIdea(torch.optim.Optimizer):
    """Sign of a momentum: m = beta m + (1 - beta) g; w = w - lr (sign(m) + weight_decay w).

    Args:
        params: parameters or groups; the model hands them over.
        lr: step size.
        beta: of the momentum, in [0, 1).
        weight_decay: decoupled, a factor on lr.
    """

    def __init__(self, params, lr: float = 3e-4, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta {beta} must be at least 0 and below 1")
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(m.sign(), alpha=-group["lr"])
        return loss
'''

OPTIMIZER_TEST = '''"""MyIdea against its formula by hand, and what torch expects of an optimizer."""

import copy

import torch
from my_idea import MyIdea
from torch import nn


def train(optimizer, w, steps, start=0):
    for step in range(start, start + steps):
        w.grad = torch.sin(torch.arange(5.0) * (step + 1))
        optimizer.step()


def test_steps_follow_the_formula():
    w = nn.Parameter(torch.linspace(-1, 1, 5))
    m, expected = torch.zeros(5), w.detach().clone()
    train(MyIdea([w], lr=0.1, beta=0.8, weight_decay=0.5), w, 4)
    for step in range(4):
        m = 0.8 * m + 0.2 * torch.sin(torch.arange(5.0) * (step + 1))
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * m.sign()
    torch.testing.assert_close(w.detach(), expected)


def test_a_saved_state_continues_to_the_bit():
    one = nn.Parameter(torch.ones(5))
    optimizer = MyIdea([one], lr=0.1)
    train(optimizer, one, 3)
    two = nn.Parameter(one.detach().clone())
    other = MyIdea([two], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, one, 3, start=3)
    train(other, two, 3, start=3)
    assert torch.equal(one, two)
'''

CALLBACK = '''"""A callback of your own. It acts on parameters by their gradients and imports no model."""

from cubelet.callbacks.base import StatefulCallback


class MyIdea(StatefulCallback):
    """Scales a parameter's gradient down where its RMS is above `limit`, before each optimizer step.

    Args:
        limit: largest RMS of a parameter's gradient.
    """

    def __init__(self, limit: float = 0.01) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"limit {limit} must be above 0")
        self.limit = limit
        self.steps = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rms = p.grad.square().mean().sqrt()
                    p.grad.mul_((self.limit / rms.clamp(min=1e-12)).clamp(max=1.0))
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]
'''

CALLBACK_TEST = '''"""MyIdea by hand, and what the project asks of callbacks: copies before a run, a plain state."""

import copy

import torch
from my_idea import MyIdea
from torch import nn


def test_large_gradients_shrink_and_small_ones_stay():
    large, small = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    large.grad, small.grad = torch.full((4,), 3.0), torch.full((4,), 0.25)
    MyIdea(limit=0.5).on_before_optimizer_step(None, None, torch.optim.SGD([large, small], lr=1.0))
    torch.testing.assert_close(large.grad, torch.full((4,), 0.5))
    torch.testing.assert_close(small.grad, torch.full((4,), 0.25))


def test_it_can_be_copied_and_its_state_goes_on():
    callback = copy.deepcopy(MyIdea(limit=0.5))
    callback.load_state_dict({"steps": 7})
    assert callback.state_dict() == {"steps": 7}
'''

DATA = '''"""Data of your own: each row counts on by a step of its own, so the next token needs the two before it."""

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    """Rows made from (seed, number): nothing to store, the same in every process."""

    def __init__(self, count: int, length: int, symbols: int, seed: int) -> None:
        self.count, self.length, self.symbols, self.seed = count, length, symbols, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        start, step = torch.randint(self.symbols, (2,), generator=generator)
        row = (start + step * torch.arange(self.length + 1)) % self.symbols  # (s + 1,)
        return {"tokens": row[:-1], "targets": row[1:]}


class MyIdea(LightningDataModule):
    """Batches {"tokens": (b, s), "targets": (b, s)} int64; targets are -100 where nothing is to be predicted.

    Args:
        context_length: tokens of a row.
        batch_size: rows of a batch.
        symbols: size of the alphabet.
        rows: of an epoch.
        seed: of the rows and their order.

    Attributes:
        vocab_size: the model's `vocab_size` is linked to it.
    """

    def __init__(
        self, context_length: int = 32, batch_size: int = 32, symbols: int = 23, rows: int = 8192, seed: int = 0
    ) -> None:
        super().__init__()
        self.context_length, self.batch_size, self.vocab_size = context_length, batch_size, symbols
        self.rows, self.seed = rows, seed

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.seed)
        rows = Rows(self.rows, self.context_length, self.vocab_size, self.seed + 1)
        return DataLoader(rows, self.batch_size, shuffle=True, generator=generator, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(256, self.context_length, self.vocab_size, 0), self.batch_size)

    test_dataloader = val_dataloader
'''

DATA_TEST = '''"""MyIdea's batches: what the model expects, the same from the same seed, held-out rows of their own."""

import torch
from my_idea import MyIdea


def test_targets_are_the_next_tokens():
    batch = next(iter(MyIdea(context_length=9, batch_size=4).train_dataloader()))
    assert batch["tokens"].shape == batch["targets"].shape == (4, 9)
    assert batch["tokens"].dtype == torch.int64
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert batch["targets"].max() < MyIdea().vocab_size


def test_the_seed_decides_and_validation_does_not_move():
    def first(seed, part):
        return next(iter(getattr(MyIdea(seed=seed), f"{part}_dataloader")()))["tokens"]

    assert torch.equal(first(1, "train"), first(1, "train"))
    assert not torch.equal(first(1, "train"), first(2, "train"))
    assert torch.equal(first(1, "val"), first(2, "val"))
'''

COMPONENT_CONFIG = """# MyIdea, laid over another configuration: cubelet fit --config my_idea.yaml
model:
  KIND:
    class_path: my_idea.MyIdea
    init_args:
      OPTIONS
"""

CALLBACK_CONFIG = """# MyIdea, laid over another configuration: cubelet fit --config my_idea.yaml
trainer:
  callbacks:
    - class_path: my_idea.MyIdea
      init_args:
        limit: 0.01
"""

BLOCK_CONFIG = """# MyIdea, laid over another configuration: cubelet fit --config my_idea.yaml
model:
  block: my_idea.MyIdea
"""

EXPERIMENT = """title: Does MyIdea help?
# What is compared: the same model, data and seeds, with and without it. More: cubelet compare --help
base: configs/text.yaml
common: [configs/plain.yaml, model.layers=2]
baseline: without
variants:
  without: []
  MyIdea: VARIANT
seeds: 3
validations: 1
budgets:
  quick: {steps: 150} # a minute or two on two cores; early training only
  standard: {steps: 2000}
"""

DATA_EXPERIMENT = """title: Do combined rotations help on MyIdea?
# More variants: what `cubelet list configs` shows. More: cubelet compare --help
base: my_idea.yaml
baseline: RoPE
variants:
  RoPE: []
  combined: [configs/rotary/combined.yaml]
seeds: 3
validations: 1
budgets:
  quick: {steps: 150} # a minute or two on two cores; early training only
  standard: {steps: 2000}
"""


def _config(kind: str, options: str) -> str:
    return COMPONENT_CONFIG.replace("KIND", kind).replace("OPTIONS", options)


TEMPLATES = {
    "rotary": Template(ROTARY, ROTARY_TEST, _config("rotary", "power: 0.9"), "[my_idea.yaml]"),
    "attention": Template(
        ATTENTION, MODULE_TEST.replace("KIND", "attention"), _config("attention", "start: 1.0"), "[my_idea.yaml]"
    ),
    "block": Template(BLOCK, MODULE_TEST.replace("KIND", "block"), BLOCK_CONFIG, "[my_idea.yaml]"),
    "optimizer": Template(OPTIMIZER, OPTIMIZER_TEST, _config("optimizer", "lr: 0.0003"), "[my_idea.yaml]"),
    "callback": Template(CALLBACK, CALLBACK_TEST, CALLBACK_CONFIG, "[my_idea.yaml]"),
    "data": Template(DATA, DATA_TEST, "", ""),
}
