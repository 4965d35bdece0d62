"""Windows, spectra and the running average against a slow reference."""

import numpy as np
import pytest
import torch

from cubelet.optimizers.spectral_momentum import (
    average_bands,
    index_spectrum,
    stack_windows,
    time_spectrum,
    window_geometry,
)
from tests.reference import optimizers as reference

MATRICES = [(64, 128), (1000, 64), (17, 65), (16, 64), (256, 3)]
SHAPES = [*MATRICES, (300,), (1024,), (5,), (), (4, 3, 5, 5), (96, 1, 3), (40, 8, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_and_spectra_are_those_of_the_reference(shape):
    grad = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    stacked = stack_windows([(torch.tensor(grad), window_geometry(shape))])
    np.testing.assert_array_equal(stacked[0].numpy(), reference.window(grad))
    np.testing.assert_allclose(
        index_spectrum(stacked)[0].numpy(), reference.index_magnitudes(grad), rtol=2e-4, atol=1e-4
    )


def test_rows_of_a_window_are_evenly_spaced_in_index_order_not_in_memory_order():
    grad = torch.arange(160 * 100.0).view(160, 100)
    torch.testing.assert_close(stack_windows([(grad, window_geometry((160, 100)))])[0], grad[::10, :64])
    grad = torch.randn(128, 80).t()  # not contiguous: read in the order of its indices, not of its memory
    torch.testing.assert_close(stack_windows([(grad, window_geometry((80, 128)))])[0], grad[::5, :64])


def test_geometry_with_one_row_is_the_first_entries():
    assert window_geometry((2000,), 1, 1000)[0] == (1, 1000)
    grad = torch.randn(30, 50)
    size, stride = window_geometry((30, 50), 1, 1000)
    torch.testing.assert_close(torch.as_strided(grad, size, stride)[0], grad.flatten()[:1000])


def test_stacking_mixed_sizes_pads_with_zeros_in_order():
    shapes = [(16, 64), (3, 64), (16, 64), (7,), (0, 64)]
    grads = [torch.randn(shape) for shape in shapes]
    stacked = stack_windows([(grad, window_geometry(grad.shape)) for grad in grads])
    assert stacked.shape == (5, 16, 64)
    for row, grad in zip(stacked, grads, strict=True):
        view = grad.view(-1, grad.shape[-1])
        torch.testing.assert_close(row[: view.shape[0], : view.shape[1]], view)
        assert row.abs().sum() == pytest.approx(view.abs().sum().item(), rel=1e-5)
    half = torch.randn(16, 64, dtype=torch.bfloat16)
    assert stack_windows([(half, window_geometry((16, 64)))]).dtype == torch.float32


@pytest.mark.parametrize("length", [4, 24, 25])
def test_time_spectrum_is_the_transform_of_each_entry_whatever_the_oldest_row(length):
    ring = torch.randn(6, length, 16, 64)
    wanted = [reference.time_magnitudes(list(tensor.double().numpy())) for tensor in ring]
    np.testing.assert_allclose(time_spectrum(ring).numpy(), np.stack(wanted), rtol=2e-4)
    torch.testing.assert_close(time_spectrum(ring.roll(3, 1)), time_spectrum(ring), rtol=2e-4, atol=1e-3)


KEEP = 0.9**2


@pytest.mark.parametrize("magnitudes", [[0.0] * 4, [1.0, float("nan"), 1, 1], [1.0, 1, 1, float("inf")]])
@pytest.mark.parametrize("bands", [[0.0] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_unusable_magnitudes_change_nothing(magnitudes, bands):
    usable, new = average_bands(torch.tensor([magnitudes]), torch.tensor([bands]), KEEP)
    assert not usable.any()
    assert new.tolist() == torch.tensor([bands]).tolist()


def test_the_first_spectrum_is_taken_whole_later_ones_are_averaged():
    _, new = average_bands(torch.tensor([[0.0, 0, 5, 5]]), torch.zeros(1, 4), KEEP)
    torch.testing.assert_close(new, torch.tensor([[0, 0, 0.5, 0.5]]))
    _, new = average_bands(torch.tensor([[4.0, 4, 0, 0]]), torch.tensor([[0, 0, 0.5, 0.5]]), KEEP)
    torch.testing.assert_close(new, torch.tensor([[(1 - KEEP) / 2, (1 - KEEP) / 2, KEEP / 2, KEEP / 2]]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_gradient_does_not_matter(scale):
    magnitudes, empty = torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(1, 4)
    torch.testing.assert_close(
        average_bands(magnitudes, empty, KEEP)[1], average_bands(scale * magnitudes, empty, KEEP)[1]
    )
