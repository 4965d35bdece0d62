"""Turning and mixing: every way through them gives the same numbers."""

import pytest
import torch
from torch.autograd import forward_ad

from cubelet.models.rotary import QuaternionRotary, RoPE
from cubelet.models.rotary.turning import mix, turn_pairs


def orders(x):
    """The same (b, h, s, c) values in three memory orders."""
    wide = torch.cat([x, x], dim=-1)
    return [x.contiguous(), x.transpose(1, 2).contiguous().transpose(1, 2), wide[..., : x.shape[-1]]]


@pytest.mark.parametrize("rows", [3, 400])  # few rows, and enough for the convolution
@pytest.mark.parametrize("columns", [32, 7])
def test_mix_is_the_matrix_product_with_its_gradients(rows, columns):
    torch.manual_seed(0)
    x, R = torch.randn(2, 3, rows, 32), torch.randn(32, columns, requires_grad=True)
    grad = torch.randn(2, 3, rows, columns)
    exact = [t.detach().double().requires_grad_() for t in (x, R)]
    (exact[0] @ exact[1]).backward(grad.double())
    for given in orders(x):
        given, R.grad = given.detach().requires_grad_(), None
        y = mix(given, R)
        y.backward(grad)
        assert torch.allclose(y.double(), exact[0] @ exact[1], atol=1e-5)
        assert torch.allclose(given.grad.double(), exact[0].grad, atol=1e-5)
        assert torch.allclose(R.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_turning_without_gradients_gives_the_same_numbers(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 16, dtype=dtype)
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    table = torch.polar(torch.ones(9, 8), torch.randn(9, 8)).to(kind)
    odd = torch.randn(2, 3, 9, 17, dtype=dtype)[..., 1:]  # memory that is not in pairs
    for given in (*orders(x), odd, orders(x)[1].requires_grad_()):
        recorded = turn_pairs(given.detach().requires_grad_(), table)
        with torch.no_grad():
            plain = turn_pairs(given, table)
        assert torch.equal(plain, recorded)
        assert plain.dtype == dtype


def test_tangents_survive_without_gradients():
    rope = RoPE(32, 2)
    x, tangent = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16)
    with torch.no_grad(), forward_ad.dual_level():
        out = forward_ad.unpack_dual(rope.rotate(forward_ad.make_dual(x, tangent))).tangent
    assert out is not None
    assert torch.allclose(out, rope.rotate(tangent), atol=1e-6)


@pytest.mark.parametrize("make", [RoPE, QuaternionRotary])  # CombinedRotary: test_combined.py
def test_no_kept_table_is_stale(make):
    torch.manual_seed(0)
    rotary, x = make(24, 2), torch.randn(1, 2, 5, 12)
    writes = [rotary.base.data] + [p.data for p in rotary.parameters()]  # writing through .data counts no version
    with torch.no_grad():
        for value in writes:
            before = rotary.rotate(x)
            value.add_(value.abs() * 0.5 * torch.rand_like(value) + 0.1)
            after = rotary.rotate(x)
            assert not torch.allclose(before, after, atol=1e-4)
            fresh = make(24, 2)
            fresh.load_state_dict(rotary.state_dict())
            assert torch.equal(after, fresh.rotate(x))
            assert rotary.rotate(x[:, :, :3]).shape[2] == 3  # another length between two of the same
