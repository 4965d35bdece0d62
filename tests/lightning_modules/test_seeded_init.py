"""Initial values by (seed, name): shared parameters equal between variants, distributions those of the modules."""

import warnings

import pytest
import torch
from torch import nn

from cubelet.lightning_modules import LanguageModel
from cubelet.lightning_modules.seeded_init import initialize_by_name
from cubelet.models.attention import (
    AdaptiveSpanAttention,
    ContentGatedAttention,
    DynamicConvAttention,
    RelativeForceAttention,
)
from cubelet.models.blocks import MyelinatedBlock, ShortConvBlock
from cubelet.models.rotary import CombinedRotary, ProjectedRotary, QuaternionRotary, RoPE

VARIANTS = {
    "none": {"rotary": None},
    "combined": {"rotary": CombinedRotary},
    "quaternion": {"rotary": QuaternionRotary},
    "projected": {"rotary": ProjectedRotary},
    "embedding": {"rotary": RoPE, "embedding_rotary": CombinedRotary},
    "convolution": {"rotary": RoPE, "block": ShortConvBlock},
    "span": {"rotary": RoPE, "attention": AdaptiveSpanAttention},
    "gated": {"rotary": RoPE, "attention": ContentGatedAttention},
    "dynamic": {"rotary": RoPE, "attention": DynamicConvAttention},
    "force": {"rotary": RoPE, "attention": RelativeForceAttention},
    "myelinated": {"rotary": RoPE, "block": MyelinatedBlock},
}


def state(seed, rotary=RoPE, **parts):
    return LanguageModel(28, dims=32, layers=2, heads=2, rotary=rotary, init_seed=seed, **parts).state_dict()


@pytest.mark.parametrize("name", VARIANTS)
def test_shared_parameters_are_equal_whatever_else_a_variant_has(name):
    base = state(3)
    torch.manual_seed(99)  # whatever the global generator did before
    other = state(3, **VARIANTS[name])
    shared = [k for k in base if k in other and base[k].shape == other[k].shape]
    assert "decoder.embedding.weight" in shared
    assert name == "myelinated" or sum("qkv" in k or "mlp.up" in k for k in shared) >= 2
    assert all(torch.equal(base[k], other[k]) for k in shared)
    again = state(3, **VARIANTS[name])
    assert all(torch.equal(other[k], again[k]) for k in other)
    assert not torch.equal(state(4)["decoder.embedding.weight"], base["decoder.embedding.weight"])


@pytest.mark.parametrize("name", VARIANTS)
def test_distributions_are_those_of_the_modules(name):
    # Over 12 models: what is constant stays so, and of what is random mean and deviation agree.
    torch.manual_seed(0)
    plain = [state(None, **VARIANTS[name]) for _ in range(12)]
    named = [state(seed, **VARIANTS[name]) for seed in range(12)]
    for key, first in plain[0].items():
        if not first.is_floating_point():
            continue
        one, two = (torch.stack([s[key] for s in states]) for states in (plain, named))
        spread = one.std()
        if (one == one[0]).all():
            assert torch.equal(one[0], two[0]), key
        else:
            error = spread * (2 / one.numel()) ** 0.5
            assert abs(one.mean() - two.mean()) < 5 * error + 0.3 * spread * (first.numel() == 1), key
            assert abs(two.std() / spread - 1) < 5 / one.numel() ** 0.5 + 0.02, key
            assert not torch.equal(two[0], two[1]), key


def test_layers_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    model = LanguageModel(28, dims=32, layers=2, heads=2, rotary=CombinedRotary)
    before = torch.get_rng_state()
    initialize_by_name(model.decoder, 1)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (model.decoder.blocks[i].attention for i in range(2))
    assert not torch.equal(first.qkv.weight, second.qkv.weight)
    assert not torch.equal(first.rotary.anchor, second.rotary.anchor)
    assert not torch.equal(first.rotary.pairs, second.rotary.pairs)
    assert (first.out.weight == 0).all()  # set by the block, not by the attention


def test_parameters_that_no_method_draws_are_told():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.loose = nn.Parameter(torch.randn(3))

    with pytest.warns(UserWarning, match=r"1 parameters \(first: loose\)"):
        initialize_by_name(Loose(), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialize_by_name(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), 0)


def test_a_checkpoint_tells_its_seed(tmp_path):
    assert LanguageModel(28, dims=16, layers=1, heads=2, init_seed=7).hparams["init_seed"] == 7
