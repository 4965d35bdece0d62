import copy

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from cubelet.callbacks import ParameterCycler
from cubelet.callbacks.parameter_cycler.members import refusal
from tests.reference.callbacks import FakeFAM, MemoryLogger, Recorder, Rows, Small, train

NAMES = ["layer.weight", "layer.bias", "head.weight", "head.bias"]


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def fam(parameters):
    optimizers = pytest.importorskip("cubelet.optimizers")
    return optimizers.FAM(parameters, lr=0.05, start_step=2, min_size=8, weight_decay=0.1, analyse_every=1)


def replay(module, optimizer, members, order, steps, every=1, accumulate=1):
    """The same training by hand: gradients of members out of turn are thrown away before the optimizer."""
    batches = [Rows(64)[4 * i : 4 * i + 4] for i in range(16)]
    own = dict(module.named_parameters())
    for step in range(steps):
        optimizer.zero_grad()
        for i in range(accumulate):
            loss = module(batches[(step * accumulate + i) % 16]).square().mean()
            (loss / accumulate).backward()
        active = members[order(step // every)]
        for name in {name for member in members for name in member} - set(active):
            own[name].grad = None
        optimizer.step()
    return {name: p.detach().clone() for name, p in own.items()}


@pytest.mark.parametrize("optimizer", [adamw, sgd, fam])
@pytest.mark.parametrize("mode", ["grad", "requires_grad"])
def test_inactive_parameters_do_not_move_at_all(optimizer, mode):
    members = NAMES[:3]
    recorder = Recorder()
    train(Small(optimizer), [ParameterCycler(members, mode=mode), recorder], 9)
    for i, name in enumerate(members):
        assert recorder.moved(name) == [step % 3 == i for step in range(9)]
    assert all(recorder.moved("head.bias"))  # outside the set: learns always


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (3, 1), (2, 2)])
def test_equals_training_by_hand(every, accumulate):
    module = Small(adamw)
    reference = copy.deepcopy(module)
    expected = replay(
        reference, adamw(reference.parameters()), [[n] for n in NAMES], lambda turn: turn % 4, 11, every, accumulate
    )
    train(module, [ParameterCycler("", every_n_steps=every)], 11, accumulate_grad_batches=accumulate)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-7)


def test_groups_learn_together_and_validation_does_not_advance():
    recorder = Recorder()
    groups = {"first": "layer.*", "second": ["head.weight", "head.bias"]}
    train(Small(adamw), [ParameterCycler(groups), recorder], 6, limit_val_batches=2, val_check_interval=1)
    for name in NAMES:
        assert recorder.moved(name) == [(step % 2 == 0) == name.startswith("layer") for step in range(6)]


def test_clipping_sees_only_active_gradients():
    norms = []

    class Clipped(Small):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            norms.append({n for n, p in self.named_parameters() if p.grad is not None})

    train(Clipped(), [ParameterCycler(NAMES)], 4, gradient_clip_val=1.0)
    assert norms == [{name} for name in NAMES]


@pytest.mark.parametrize("mode", ["grad", "requires_grad"])
def test_frozen_parameters_stay_frozen_and_their_turn_passes(mode):
    module = Small(adamw)
    module.layer.bias.requires_grad_(False)
    recorder = Recorder()

    class Freeze(ParameterCycler):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            if trainer.global_step == 2:
                pl_module.head.bias.requires_grad_(False)  # by the user, in the middle of the run, before its turn

    train(module, [Freeze(NAMES, mode=mode), recorder], 6)
    assert recorder.moved("layer.bias") == [False] * 6
    assert recorder.moved("head.bias") == [False] * 6
    assert recorder.moved("layer.weight") == [True, False, True, True, False, True]
    assert recorder.moved("head.weight") == [False, True, False, False, True, False]
    assert [n for n in NAMES if module.get_parameter(n).requires_grad] == ["layer.weight", "head.weight"]


class TwoOptimizers(Small):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first_steps = 0

    def configure_optimizers(self):
        return adamw(self.layer.parameters()), sgd(self.head.parameters())

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(self(batch).square().mean())
        if batch_idx % 2 == 0:  # the first optimizer steps half as often
            first.step()
            first.zero_grad()
        second.step()
        second.zero_grad()


def test_every_optimizer_has_a_cycle_of_its_own_in_manual_optimization():
    recorder = Recorder()
    cycler = ParameterCycler(NAMES)
    train(TwoOptimizers(), [cycler, recorder], 12)
    batches = len(recorder.steps) - 1
    assert batches == 8
    # second optimizer: head.weight, head.bias in turn, at every batch; first: every other batch
    assert recorder.moved("head.weight") == [i % 2 == 0 for i in range(8)]
    assert recorder.moved("head.bias") == [i % 2 == 1 for i in range(8)]
    assert recorder.moved("layer.weight") == [i % 4 == 0 for i in range(8)]
    assert recorder.moved("layer.bias") == [i % 4 == 2 for i in range(8)]
    assert cycler.state_dict()["steps"] == [4, 8]


def test_a_closure_that_runs_several_times_is_one_step():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)

    cycler = ParameterCycler(NAMES)
    train(Small(lbfgs), [cycler], 3)
    assert cycler.state_dict()["steps"] == [3]


@pytest.mark.parametrize("order", ["random", "permutation"])
def test_a_resumed_run_continues_the_sequence(order, tmp_path):
    def callback():
        return ParameterCycler(NAMES, order=order, seed=7, every_n_steps=2)

    whole, first, second = Recorder(), Recorder(), Recorder()
    train(Small(adamw, rows=4), [callback(), whole], 14)  # an epoch is one batch: no data order to restore
    trainer = train(Small(adamw, rows=4), [callback(), first], 5)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    module = Small(adamw, rows=4)
    train(module, [callback(), second], 14, ckpt_path=tmp_path / "five.ckpt")
    for name in NAMES:
        assert first.moved(name) + second.moved(name) == whole.moved(name)
        assert torch.equal(second.steps[-1][name], whole.steps[-1][name])


def test_types_select_the_parameters_of_such_modules():
    class Deep(Small):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            return super().forward(self.norm(x))

    for pattern in (nn.LayerNorm, "type:LayerNorm", ["type:LayerNorm", nn.LayerNorm], r"^norm\.(weight|bias)$"):
        cycler = ParameterCycler(pattern)
        train(Deep(), [cycler], 1)
        assert cycler.state_dict()["members"] == [["norm.weight", "norm.bias"]]


def test_two_instances_work_side_by_side(tmp_path):
    logger = MemoryLogger()
    recorder = Recorder()
    callbacks = [ParameterCycler("layer"), ParameterCycler("head", every_n_steps=2), recorder]
    train(Small(adamw), callbacks, 8, logger=logger, log_every_n_steps=1)
    assert recorder.moved("layer.weight") == [i % 2 == 0 for i in range(8)]
    assert recorder.moved("head.weight") == [i % 4 < 2 for i in range(8)]
    assert [value for _, value in logger.series("cycler")] == [0, 1] * 4
    assert [value for _, value in logger.series("cycler_2")] == [0, 0, 1, 1] * 2
    table = dict(logger.experiment.texts)["cycler/members"]
    assert "| 1 | layer.bias |" in table


def test_logs_no_more_often_than_the_trainer():
    logger = MemoryLogger()
    train(Small(), [ParameterCycler(NAMES)], 20, logger=logger, log_every_n_steps=6)
    # Turns 0 1 2 3 0 1, 2 3 0 1 2 3, …: means, since the sixth turn alone would show members 1 and 3 and never 0 and 2.
    assert logger.series("cycler") == [
        (5, pytest.approx(7 / 6)),
        (11, pytest.approx(11 / 6)),
        (17, pytest.approx(7 / 6)),
    ]
    assert [values.tolist() for tag, values in logger.experiment.histograms if tag == "cycler/turns"] == [
        [0, 1, 2, 3, 0, 1],
        [2, 3, 0, 1, 2, 3],
        [0, 1, 2, 3, 0, 1],
    ]


def test_optimizer_steps_with_nothing_of_its_own_are_left_alone():
    cycler = ParameterCycler("layer")

    class Partial(TwoOptimizers):
        def configure_optimizers(self):
            return adamw(self.layer.parameters()), FakeFAM(self.head.parameters(), lr=0.1)

    recorder = Recorder()
    train(Partial(), [cycler, recorder], 6)
    assert all(recorder.moved("head.weight"))
    assert cycler.active(1) is None


def test_nothing_found_is_said_once_and_raised_when_strict():
    with pytest.warns(UserWarning, match="ParameterCycler is idle.*nonsense"):
        train(Small(), [ParameterCycler("nonsense")], 2)
    with pytest.raises(ValueError, match="nonsense"):
        train(Small(), [ParameterCycler("nonsense", strict=True)], 2)


def test_requires_grad_mode_refuses_compiled_models():
    module = Small()
    module.layer.compile(backend="eager")
    with pytest.raises(RuntimeError, match='mode="grad"'):
        train(module, [ParameterCycler(NAMES, mode="requires_grad")], 1)


@pytest.mark.parametrize(
    "arguments",
    [{"order": "up"}, {"every_n_steps": 0}, {"mode": "freeze"}],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        ParameterCycler("x", **arguments)


def test_a_parameter_in_two_groups_is_refused():
    with pytest.raises(ValueError, match=r"layer\.weight.*'a'.*'b'"):
        train(Small(), [ParameterCycler({"a": "layer", "b": "weight"})], 1)


def test_parameters_are_thawed_when_the_fit_ends():
    module = Small()
    train(module, [ParameterCycler(NAMES, mode="requires_grad")], 3)
    assert all(p.requires_grad for p in module.parameters())


def test_grad_mode_compiles_nothing_anew():
    def graphs(callbacks):
        compiled = []

        def backend(graph, inputs):
            compiled.append(graph)
            return graph.forward

        torch._dynamo.reset()
        module = Small(adamw)
        module.forward = torch.compile(module.forward, backend=backend, fullgraph=True)
        train(module, callbacks, 9)
        return len(compiled)

    assert graphs([ParameterCycler(NAMES)]) == graphs([]) == 1


@pytest.mark.parametrize("mode", ["grad", "requires_grad"])
def test_deepspeed_is_refused_with_the_fix(mode):
    class DeepSpeedStrategy:  # by name, as projects on `pytorch_lightning` have another class
        model = None

    assert "use DDP or FSDP2" in (refusal(DeepSpeedStrategy(), BoringModel(), mode) or "")


class Finetunes(BackboneFinetuning):
    """Thaws the layer and hands it to the optimizer in the second epoch, as Lightning's callback does a backbone."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.layer)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.layer, optimizer, lr=0.1)

    def on_fit_start(self, trainer, pl_module):
        BaseFinetuning.on_fit_start(self, trainer, pl_module)


@pytest.mark.parametrize("mode", ["grad", "requires_grad"])
def test_parameters_that_are_thawed_later_join_the_cycle(mode):
    recorder, callback = Recorder(), ParameterCycler("weight", mode=mode)

    class Sgd(Small):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    train(Sgd(rows=16), [Finetunes(), callback, recorder], 12)  # four steps an epoch
    assert not any(recorder.moved("layer.weight")[:4])
    assert all(recorder.moved("head.weight")[:4])
    layer, head = recorder.moved("layer.weight")[4:], recorder.moved("head.weight")[4:]
    assert [a != b for a, b in zip(layer, head, strict=True)] == [True] * 8  # one of the two at a time
    assert 3 <= sum(layer) <= 5
    assert all(recorder.moved("layer.bias")[4:])  # outside the patterns
