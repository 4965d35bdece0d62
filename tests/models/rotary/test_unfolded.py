"""The unfolded control against the folded rotary."""

import torch

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import CombinedRotary
from cubelet.models.rotary.unfolded import UnfoldedCombinedRotary


def test_unfolded_is_the_same_function_as_folded():
    torch.manual_seed(0)
    folded = MultiHeadAttention(16, 2, rotary=CombinedRotary(16, 2))
    plain = MultiHeadAttention(16, 2, rotary=UnfoldedCombinedRotary(16, 2))
    plain.load_state_dict(folded.state_dict())
    for attention in (folded, plain):
        torch.nn.init.constant_(attention.rotary.thetas, 0.3)
    x = torch.randn(2, 40, 16)
    torch.testing.assert_close(plain(x), folded(x), rtol=1e-4, atol=1e-5)
    assert plain.rotary.mixing() is None
