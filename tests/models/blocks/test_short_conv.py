"""Short convolutions: the sum as a loop, its gradients, causality, cache and padding inside a block."""

import pytest
import torch

from cubelet.models.blocks import ResidualBlock, ShortConv, ShortConvBlock
from cubelet.models.rotary import RoPE
from tests.reference.nudge import nudge


def slow(x, kernel):
    """y_t = x_t + Σᵢ kernelᵢ x_{t−1−i}, token by token."""
    rows = []
    for t in range(x.shape[1]):
        y = x[:, t]
        for i in range(kernel.shape[0]):
            if t - 1 - i >= 0:
                y = y + kernel[i] * x[:, t - 1 - i]
        rows.append(y)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("taps", [2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_the_loop_with_gradients(taps, length):
    conv = nudge(ShortConv(6, taps).double(), scale=1.0)
    x = torch.randn(2, length, 6, dtype=torch.double, requires_grad=True)
    up = torch.randn(2, length, 6, dtype=torch.double)
    expected, got = slow(x, conv.kernel), conv(x)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(got, (x, conv.kernel), up),
        torch.autograd.grad(expected, (x, conv.kernel), up, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    conv = ShortConv(3, 3).double()
    x = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, k: torch.func.functional_call(conv, {"kernel": k}, (x,)), (x, kernel))


def test_starts_as_the_identity():
    torch.manual_seed(0)
    plain = ResidualBlock(16, 2, rotary=RoPE)
    block = ShortConvBlock(16, 2, rotary=RoPE)
    block.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 7, 16)
    assert torch.equal(block(x)[0], plain(x)[0])


def block_of(**options):
    torch.manual_seed(0)
    return nudge(ShortConvBlock(16, 2, rotary=RoPE, **options), scale=0.3).eval()


def test_no_future_reaches_the_past():
    block, x = block_of(), torch.randn(2, 10, 16)
    full = block(x)[0]
    for t in (1, 4, 9):
        changed = x.clone()
        changed[:, t:] += 30 * torch.randn(2, 10 - t, 16)
        assert torch.equal(block(changed)[0][:, :t], full[:, :t])


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 10, [5, 5], [1, 4, 3, 2]])
def test_cached_chunks_equal_the_whole(chunks, cross):
    block, x = block_of(cross_attention=cross, taps=4), torch.randn(3, 10, 16)
    context = torch.randn(3, 5, 16) if cross else None
    cache = block.new_cache(3, 10)
    parts = [block(piece, context, cache=cache)[0] for piece in x.split(chunks, 1)]
    assert cache.length == 10
    torch.testing.assert_close(torch.cat(parts, 1), block(x, context)[0], rtol=1e-5, atol=1e-5)


def test_a_reordered_cache_follows_its_rows():
    block, x = block_of(), torch.randn(3, 6, 16)
    order = torch.tensor([2, 0, 0])
    cache = block.new_cache(3, 6)
    block(x[:, :4], cache=cache)
    cache.reorder(order)
    got = block(x[order][:, 4:], cache=cache)[0]
    torch.testing.assert_close(got, block(x[order])[0][:, 4:], rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_changes_nothing():
    block, x = block_of(), torch.randn(2, 8, 16)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, :3] = False
    padded = x.clone()
    padded[1, :3] = torch.nan
    out = block(padded, key_mask=mask)[0]
    torch.testing.assert_close(out[1, 3:], block(x[1:, 3:])[0][0], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[0], block(x, key_mask=mask)[0][0])


@pytest.mark.slow
def test_compiles_to_the_same_sum():
    conv = nudge(ShortConv(8, 3), scale=1.0)
    compiled = torch.compile(conv, fullgraph=True)
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(compiled(x), conv(x))


def test_a_single_tap_is_refused():
    with pytest.raises(ValueError, match="taps 1"):
        ShortConv(8, 1)
