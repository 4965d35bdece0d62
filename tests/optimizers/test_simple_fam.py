import numpy as np
import pytest
import torch
from torch import nn

from cubelet.optimizers import SimpleFAM, parameter_groups


def reference_alpha(grad, alpha):
    """min(0.98, α + 0.05·share of the upper half of the first 1000 entries' spectrum)."""
    magnitudes = np.abs(np.fft.rfft(grad.reshape(-1)[:1000].astype(np.float64)))
    share = sum(m for f, m in enumerate(magnitudes) if f * 2 // len(magnitudes) == 1) / magnitudes.sum()
    return min(0.98, alpha + 0.05 * share)


@pytest.mark.parametrize("shape", [(1001,), (40, 50), (8, 3, 7, 7)])
@pytest.mark.parametrize("alpha", [0.9, 0.96])
def test_follows_the_formula_step_by_step(shape, alpha):
    rng = np.random.default_rng(0)
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = SimpleFAM([weight], lr=0.1, alpha=alpha, start_step=3, analyse_every=1)
    w = m = np.zeros(shape)
    for step in range(1, 12):
        grad = np.cos(step * 0.3 * np.arange(np.prod(shape))).reshape(shape) + 0.3 * rng.standard_normal(shape)
        grad = grad.astype(np.float32)
        used = reference_alpha(grad, alpha) if step > 3 else alpha
        m = used * m + (1 - used) * grad
        w = w - 0.1 * m
        weight.grad = torch.tensor(grad)
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), w, atol=1e-6)
    assert optimizer.spectrum_summary()[0]["alpha"] == pytest.approx(used, abs=1e-6)


def test_a_thousand_entries_are_not_enough():
    weights = [nn.Parameter(torch.zeros(n)) for n in (1000, 1001)]
    optimizer = SimpleFAM(weights, start_step=0, analyse_every=1)
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    optimizer.step()
    assert [row["name"] for row in optimizer.spectrum_summary()] == ["group0.1"]


def test_groups_made_for_fam_lose_their_handlers_but_keep_their_rates():
    model = nn.ModuleDict({"e": nn.Embedding(80, 20), "l": nn.Linear(40, 40)})
    optimizer = SimpleFAM(parameter_groups(model, 0.1, 0.01))
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    for _ in range(110):
        optimizer.step()
    assert {row["name"] for row in optimizer.spectrum_summary()} == {"e.weight", "l.weight"}
    assert all(group["handler"] == "default" and group["n_bands"] == 2 for group in optimizer.param_groups)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.08, 0.1, 0.1])
