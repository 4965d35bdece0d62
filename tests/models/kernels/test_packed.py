"""Attention within documents: cut at the borders and by a mask, with padding around and inside documents."""

import pytest
import torch

from cubelet.models.kernels import formulas_only, packed
from cubelet.models.kernels.packed import packed_attention
from tests.conformance.subject import assert_close, noise

DOCUMENTS = torch.tensor([[0] * 7 + [1] * 12 + [2], [3] * 4 + [4] * 16])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("padding", ["none", "around", "a whole document", "inside"])
def test_both_ways_agree(monkeypatch, causal, kv_heads, padding):
    monkeypatch.setattr(packed, "TOKENS_PER_CALL", 2)
    mask = None if padding == "none" else torch.ones(2, 20, dtype=torch.bool)
    if padding == "around":
        mask[0, :3] = mask[1, 15:] = False
    elif padding == "a whole document":
        mask[1, :4] = False
    elif padding == "inside":
        mask[1, 9:12] = False
    assert (packed._pieces(DOCUMENTS, mask) is None) == (padding == "inside")
    inputs = [
        noise(2, 20, h, 8, seed=i, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for i, h in enumerate((4, kv_heads, kv_heads))
    ]
    weight = noise(2, 4, 20, 8, seed=9, dtype=torch.float64)
    if mask is not None:
        weight = weight * mask[:, None, :, None]
    results = []
    for off in ("nothing", "packed"):
        with formulas_only(off):
            y = packed_attention(*inputs, DOCUMENTS, causal=causal, key_mask=mask) * weight
            results.append((y, torch.autograd.grad(y.sum(), inputs)))
    assert_close(results[0][0], results[1][0], "output", 1e-10)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert_close(one, other, "gradient", 1e-10)


def test_many_short_documents_take_the_formula():
    assert packed._pieces(torch.arange(64)[None] // 8, None) is None
    assert packed._pieces(torch.arange(1024)[None] // 128, None) is not None
