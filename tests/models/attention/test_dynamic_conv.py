import pytest
import torch

from cubelet.models.attention import DynamicConvAttention, MultiHeadAttention
from cubelet.models.attention.dynamic_conv import dynamic_conv
from cubelet.models.rotary import RoPE
from tests.conformance.subject import assert_close, build, noise


def test_a_constant_kernel_is_a_convolution():
    v = noise(1, 2, 9, 4)
    taps = torch.tensor([0.5, 0.3, 0.2])
    y = dynamic_conv(v, taps.expand(1, 2, 9, 3))
    padded = torch.nn.functional.pad(v, (0, 0, 2, 0))
    assert_close(y, 0.5 * padded[:, :, 2:] + 0.3 * padded[:, :, 1:-1] + 0.2 * padded[:, :, :-2], "causal convolution")
    assert_close(dynamic_conv(v, taps.expand(1, 2, 4, 3)), y[:, :, 5:], "the last four rows alone")


def test_no_share_is_plain_attention():
    module = build(lambda: DynamicConvAttention(32, 4, rotary=RoPE(32, 4)))
    plain = build(lambda: MultiHeadAttention(32, 4, rotary=RoPE(32, 4)))
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith(("kernel", "share"))})
    x = noise(2, 10, 32)
    assert (module(x) - plain(x)).abs().max() > 1e-3
    torch.nn.init.constant_(module.share, -100.0)
    assert_close(module(x), plain(x), "share 0")


def test_only_the_taps_reach_the_convolution():
    module = build(lambda: DynamicConvAttention(32, 4, taps=3))
    torch.nn.init.constant_(module.share, 100.0)
    x = noise(1, 12, 32).requires_grad_()
    module(x)[0, 8].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(-1) > 1e-12).nonzero().flatten().tolist() == [6, 7, 8]


@pytest.mark.parametrize("options", [{"taps": 0}, {"taps": 4, "causal": False}])
def test_bad_taps(options):
    with pytest.raises(ValueError, match=f"taps {options['taps']}"):
        DynamicConvAttention(32, 4, **options)
