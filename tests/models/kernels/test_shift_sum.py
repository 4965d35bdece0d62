"""The short convolution as a loop over tokens, with documents and neighbours ahead."""

import pytest
import torch

from cubelet.models.kernels import formulas_only
from cubelet.models.kernels.shift_sum import shift_sum
from tests.conformance.subject import noise

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3, 3, 3, 9]])


def by_definition(x, kernel, ahead, documents):
    y = x.clone()
    offsets = [offset for offset in range(ahead, ahead - kernel.shape[0] - 1, -1) if offset]
    for t in range(x.shape[1]):
        for weight, offset in zip(kernel, offsets, strict=True):
            if 0 <= t + offset < x.shape[1]:
                same = 1.0 if documents is None else (documents[:, t] == documents[:, t + offset])[:, None]
                y[:, t] = y[:, t] + weight * x[:, t + offset] * same
    return y


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("off", ["nothing", "shift_sum"])
def test_equals_the_loop_with_gradients(ahead, packed, off):
    x, kernel = noise(2, 9, 4, dtype=torch.float64).requires_grad_(), noise(4, 4, dtype=torch.float64).requires_grad_()
    documents = DOCUMENTS if packed else None
    expected = by_definition(x, kernel, ahead, documents)
    with formulas_only(off):
        got = shift_sum(x, kernel, ahead=ahead, documents=documents)
        assert torch.allclose(got, expected)
        for one, other in zip(
            torch.autograd.grad(got.square().sum(), (x, kernel)),
            torch.autograd.grad(expected.square().sum(), (x, kernel)),
            strict=True,
        ):
            assert torch.allclose(one, other)
