import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from cubelet.callbacks import RotationMonitor
from cubelet.callbacks.rotation_monitor import measure
from tests.reference.callbacks import MemoryLogger, Small, train


class Turning(nn.Module):
    """Offers R: a rotation of the planes (0, 1) and (2, 3) by two angles, times a factor that spoils orthogonality."""

    def __init__(self, angles=(0.3, 2.0), factor: float = 1.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(angles))
        self.factor = factor
        self.base = torch.tensor(100.0)

    def mixing(self):
        blocks = [torch.stack([torch.stack([t.cos(), t.sin()]), torch.stack([-t.sin(), t.cos()])]) for t in self.theta]
        return torch.block_diag(*blocks) * self.factor


class Telling(Turning):
    def angles(self):
        return self.theta + 2 * math.pi

    def frequencies(self):
        return torch.tensor([1.0, 0.01], dtype=torch.float64)


class Still(nn.Module):
    base = 10.0

    def mixing(self):
        return None


def test_measures_what_was_put_in():
    facts = measure(Turning())
    assert facts["base"] == 100
    assert facts["orthogonality"] < 1e-6
    assert sorted(facts["angles"]) == pytest.approx([-2.0, -0.3, 0.3, 2.0], abs=1e-6)
    assert facts["turn"] == pytest.approx(1.15, abs=1e-6)
    assert facts["frequencies"] == pytest.approx([1.0, 0.1])
    spoiled = measure(Turning(factor=1.1))
    assert spoiled["orthogonality"] == pytest.approx((1.1**2 - 1) * 2, rel=1e-5)  # ‖0.21·I₄‖


def test_what_a_module_tells_itself_is_taken():
    facts = measure(Telling())
    assert facts["angles"] == pytest.approx([0.3, 2.0], abs=1e-5)
    assert facts["frequencies"] == pytest.approx([1.0, 0.01])
    assert measure(Still()) == {"base": 10.0}


def test_logs_scalars_and_pictures_over_time():
    rich, plain = MemoryLogger(), MemoryLogger(pictures=False)
    module = Small()
    module.turning, module.still = Telling(), Still()
    train(module, [RotationMonitor(every_n_steps=2, picture_every=2)], 6, logger=[rich, plain])
    assert rich.rows == plain.rows
    assert rich.series("rotation/turning/base") == [(1, 100), (3, 100), (5, 100)]
    assert rich.series("rotation/turning/orthogonality")[0][1] < 1e-5
    assert rich.series("rotation/still/base")
    assert len(rich.experiment.images) == 4  # two pictures at looks 1 and 3
    images = dict(rich.experiment.images)
    assert images["rotation/turning/frequencies_over_time"].shape == (28 + 2 * 120 + 48, 86 + 3 * 174 + 116, 3)
    cells = images["rotation/turning/angles_over_time"][28 : 28 + 24 * 10, 86 : 86 + 3 * 174]  # within the axes
    brightness = cells.astype(int).sum(-1)[::-10, 0]  # bottom row first
    assert np.flatnonzero(brightness > brightness.min()).tolist() == [int(0.3 / math.pi * 24), int(2.0 / math.pi * 24)]
    assert {tag for tag, _ in rich.experiment.histograms} == {
        "rotation/turning/angles",
        "rotation/turning/frequencies",
    }


def test_the_last_look_is_drawn_at_the_end_of_training():
    logger = MemoryLogger()
    module = Small()
    module.turning = Telling()
    train(module, [RotationMonitor(every_n_steps=2, picture_every=4)], 5, logger=logger)
    tags = [tag for tag, _ in logger.experiment.images]
    assert (
        tags == ["rotation/turning/angles_over_time", "rotation/turning/frequencies_over_time"] * 2
    )  # look 1, the end
    first, last = (logger.experiment.images[place][1] for place in (0, 2))
    assert not np.array_equal(first, last)  # two looks instead of one


def test_scalars_of_all_rotaries_together_are_the_worst_fault_and_the_mean_turn():
    logger = MemoryLogger()
    module = Small()
    module.one, module.two, module.still = Turning(), Turning(factor=1.1), Still()
    train(module, [RotationMonitor(every_n_steps=2, per_module=False)], 2, logger=logger)
    tags = {key for _, row in logger.rows for key in row if key.startswith("rotation")}
    assert tags == {"rotation/orthogonality", "rotation/turn"}
    assert logger.series("rotation/orthogonality")[0][1] == pytest.approx((1.1**2 - 1) * 2, rel=1e-5)
    assert logger.series("rotation/turn")[0][1] == pytest.approx(1.15, abs=1e-6)


def test_the_file_has_every_look_once_over_a_resume(tmp_path):
    def module():
        result = Small(rows=4)
        result.turning = Telling()
        return result

    def looks():
        return [json.loads(line) for line in (tmp_path / "rotation.jsonl").read_text().splitlines()]

    trainer = train(module(), [RotationMonitor(every_n_steps=2)], 5, logger=MemoryLogger(tmp_path))
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    train(
        module(), [RotationMonitor(every_n_steps=2)], 8, ckpt_path=tmp_path / "five.ckpt", logger=MemoryLogger(tmp_path)
    )
    assert [(look["step"], look["name"]) for look in looks()] == [(step, "turning") for step in (2, 4, 6, 8)]
    assert looks()[0]["angles"] == pytest.approx([0.3, 2.0], abs=1e-5)
    assert looks()[0]["frequencies"] == pytest.approx([1.0, 0.01])


def test_the_pictures_go_on_over_a_resume(tmp_path):
    def module():
        result = Small(rows=4)
        result.turning = Turning()
        return result

    trainer = train(module(), [RotationMonitor(every_n_steps=2)], 5)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    callback = RotationMonitor(every_n_steps=2)
    train(module(), [callback], 8, ckpt_path=tmp_path / "five.ckpt")
    assert len(callback.state_dict()["columns"]["turning/angles"]) == 4


def test_on_the_projects_own_rotaries():
    rotary = pytest.importorskip("cubelet.models.rotary")
    module = rotary.CombinedRotary(64, 4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    facts = measure(module)
    assert facts["orthogonality"] < 1e-5
    assert facts["turn"] > 0.05
    assert len(facts["frequencies"]) == 8
    assert len(facts["angles"]) == 8
    facts = measure(rotary.CombinedRotary(64, 4, rotations=0))
    assert "frequencies" in facts
    plain = measure(rotary.RoPE(64, 4))
    assert set(plain) == {"base", "frequencies"}


def test_idle_or_strict():
    with pytest.warns(UserWarning, match="rotation_matrix"):
        train(Small(), [RotationMonitor()], 1)
    with pytest.raises(ValueError, match="rotation_matrix"):
        train(Small(), [RotationMonitor(strict=True)], 1)
