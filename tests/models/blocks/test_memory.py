"""Running means against plain means of slices: padding, documents, both directions, and chunks with running sums."""

import pytest
import torch

from cubelet.models.blocks.memory import PrefixSums, memory_mean
from tests.conformance.subject import noise


def by_definition(x, real, documents, causal):
    mean = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            seen = [
                x[b, j]
                for j in range(t + 1 if causal else x.shape[1])
                if (real is None or real[b, j]) and (documents is None or documents[b, j] == documents[b, t])
            ]
            if seen:
                mean[b, t] = torch.stack(seen).mean(0)
    return mean


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_equals_means_of_slices(causal, padded, packed):
    x = noise(2, 9, 3, dtype=torch.float64)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, :3] = real[1, 7:] = False
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2], [4, 5, 5, 5, 5, 6, 6, 6, 6]])
    real, documents = real if padded else None, documents if packed else None
    mean = memory_mean(x, real, documents, causal=causal)
    assert torch.allclose(mean, by_definition(x, real, documents, causal))


@pytest.mark.parametrize("packed", [True, False])
def test_goes_on_from_running_sums(packed):
    x = noise(2, 8, 3, dtype=torch.float64)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[0, :3] = False
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [4, 5, 5, 5, 5, 6, 6, 6]]) if packed else None
    sums, parts = PrefixSums(2, [3], "cpu", torch.float64), []
    for start in range(0, 8, 3):
        own = None if documents is None else documents[:, start : start + 3]
        parts.append(memory_mean(x[:, start : start + 3], real[:, start : start + 3], own, sums=sums))
        sums.length += 3
        sums.document = None if own is None else own[:, -1:]
    assert torch.allclose(torch.cat(parts, 1), memory_mean(x, real, documents))
    with pytest.raises(ValueError, match="crop to 5"):
        sums.crop(5)
