import pytest
import torch

from cubelet.optimizers.analysis import decide
from cubelet.optimizers.handlers import HANDLERS

GROUP = {"beta": 0.9, "analyse_every": 2, "alpha": 0.9, "rule": "excess"}
WHITE = [0.25] * 4


def step(magnitudes, bands, alpha=0.91):
    magnitudes, bands = torch.tensor([magnitudes]), torch.tensor([bands])
    new, chosen = decide(magnitudes, bands, torch.tensor([alpha]), WHITE, HANDLERS["default"], GROUP)
    return new[0], chosen.item()


@pytest.mark.parametrize("magnitudes", [[0.0] * 4, [1.0, float("nan"), 1, 1], [1.0, 1, 1, float("inf")]])
def test_unusable_magnitudes_change_nothing(magnitudes):
    for bands in ([0.0] * 4, [0.1, 0.2, 0.3, 0.4]):
        new, alpha = step(magnitudes, bands)
        assert new.tolist() == torch.tensor(bands).tolist()
        assert alpha == pytest.approx(0.91)


def test_the_first_spectrum_is_taken_whole_later_ones_are_averaged():
    new, alpha = step([0.0, 0, 5, 5], [0.0] * 4)
    torch.testing.assert_close(new, torch.tensor([0, 0, 0.5, 0.5]))
    assert alpha == pytest.approx(0.95)
    new, alpha = step([4.0, 4, 0, 0], [0, 0, 0.5, 0.5])
    keep = 0.9**2
    torch.testing.assert_close(new, torch.tensor([(1 - keep) / 2, (1 - keep) / 2, keep / 2, keep / 2]))
    assert alpha == pytest.approx(0.95)


def test_scale_of_the_gradient_does_not_matter():
    one, _ = step([1.0, 2, 3, 4], [0.0] * 4)
    for scale in (1e-30, 1e30):
        other, _ = step([scale * x for x in (1.0, 2, 3, 4)], [0.0] * 4)
        torch.testing.assert_close(one, other)
