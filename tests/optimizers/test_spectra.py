import numpy as np
import pytest
import torch

from cubelet.optimizers.spectra import index_spectrum, stack_windows, time_spectrum, window, window_geometry
from tests.reference import optimizers as reference

MATRICES = [(64, 128), (1000, 64), (17, 65), (16, 64), (256, 3)]
SHAPES = [*MATRICES, (300,), (1024,), (5,), (), (4, 3, 5, 5), (96, 1, 3), (40, 8, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_and_spectra_are_those_of_the_reference(shape):
    grad = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    stacked = stack_windows([window(torch.tensor(grad))])
    np.testing.assert_array_equal(stacked[0].numpy(), reference.window(grad))
    np.testing.assert_allclose(
        index_spectrum(stacked)[0].numpy(), reference.index_magnitudes(grad), rtol=2e-4, atol=1e-4
    )


def test_a_window_is_a_view_and_its_rows_are_evenly_spaced():
    grad = torch.arange(160 * 100.0).view(160, 100)
    view = window(grad)
    assert view.untyped_storage().data_ptr() == grad.untyped_storage().data_ptr()
    torch.testing.assert_close(view, grad[::10, :64])
    grad = torch.randn(128, 80).t()  # not contiguous: read in the order of its indices, not of its memory
    torch.testing.assert_close(window(grad), grad[::5, :64])


def test_geometry_with_one_row_is_the_first_entries():
    assert window_geometry((2000,), 1, 1000)[0] == (1, 1000)
    grad = torch.randn(30, 50)
    size, stride = window_geometry((30, 50), 1, 1000)
    torch.testing.assert_close(torch.as_strided(grad, size, stride)[0], grad.flatten()[:1000])


def test_stacking_mixed_sizes_pads_with_zeros_in_order():
    views = [torch.randn(16, 64), torch.randn(3, 64), torch.randn(16, 64), torch.randn(1, 7), torch.randn(0, 64)]
    stacked = stack_windows(views)
    assert stacked.shape == (5, 16, 64)
    for row, view in zip(stacked, views, strict=True):
        torch.testing.assert_close(row[: view.shape[0], : view.shape[1]], view)
        assert row.abs().sum() == pytest.approx(view.abs().sum().item(), rel=1e-5)
    assert stack_windows([torch.randn(16, 64, dtype=torch.bfloat16)]).dtype == torch.float32


@pytest.mark.parametrize("length", [4, 24, 25])
def test_time_spectrum_is_the_transform_of_each_entry_whatever_the_oldest_row(length):
    ring = torch.randn(6, length, 16, 64)
    wanted = [reference.time_magnitudes(list(tensor.double().numpy())) for tensor in ring]
    np.testing.assert_allclose(time_spectrum(ring).numpy(), np.stack(wanted), rtol=2e-4)
    torch.testing.assert_close(time_spectrum(ring.roll(3, 1)), time_spectrum(ring), rtol=2e-4, atol=1e-3)
