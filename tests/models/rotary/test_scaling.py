"""Context-extension scalings: the formulas of `transformers` as oracle, and properties by hand."""

import pytest
import torch

from cubelet.models.attention import MultiHeadAttention
from cubelet.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    RoPE,
    Scaling,
    YaRNScaling,
)
from tests.reference import rotary as reference

FACTORS = {"short_factor": [1.0 + 0.1 * m for m in range(32)], "long_factor": [2.0 + m for m in range(32)]}
CASES = {
    "proportional": (
        ProportionalScaling(2.0, 0.3),
        {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.3},
    ),
    "longrope": (
        LongRoPEScaling(8.0, 1024, tuple(FACTORS["short_factor"]), tuple(FACTORS["long_factor"])),
        {"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 1024, **FACTORS},
    ),
    "yarn_untruncated": (
        YaRNScaling(8.0, original_length=2048, truncate=False),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048, "truncate": False},
    ),
    "yarn_mscale": (
        YaRNScaling(8.0, original_length=2048, mscale=0.7, mscale_all_dim=1.3),
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 2048,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
        },
    ),
    "linear": (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        YaRNScaling(8.0, original_length=2048),
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048},
    ),
    "yarn_options": (
        YaRNScaling(3.0, original_length=512, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3),
        {
            "rope_type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
        },
    ),
    "llama3": (
        Llama3Scaling(8.0, original_length=8192),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "llama3_options": (
        Llama3Scaling(32.0, original_length=1024, low_frequency_factor=2.0, high_frequency_factor=9.0),
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "original_max_position_embeddings": 1024,
            "low_freq_factor": 2.0,
            "high_freq_factor": 9.0,
        },
    ),
}


def oracle(parameters, head_dim, base, length):
    """(frequencies, gain) of `transformers`."""
    utils = pytest.importorskip("transformers.modeling_rope_utils", reason="extra `bench` is not installed")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters={"rope_theta": base, **parameters},
    )
    return utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=length)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_and_gain_agree_with_transformers(case, head_dim, base):
    scaling, parameters = CASES[case]
    if case == "longrope" and head_dim != 64:
        pytest.skip("the case has 32 factors")
    length = int(parameters.get("original_max_position_embeddings", 2048) * parameters["factor"])
    frequencies, gain = oracle(parameters, head_dim, base, length)
    rotary = RoPE(head_dim, 1, base=base, scaling=scaling)
    assert torch.allclose(rotary.frequencies(torch.tensor(length)).float(), frequencies, rtol=1e-6, atol=0)
    assert rotary.gain() == pytest.approx(gain)
    read = Scaling.from_config({"rope_theta": base, **parameters})
    assert read is not None
    assert torch.equal(RoPE(head_dim, 1, base=base, scaling=read).frequencies(), rotary.frequencies())
    assert read.gain == pytest.approx(gain)


def test_longrope_takes_the_long_factors_for_long_calls_alone():
    scaling, parameters = CASES["longrope"]
    rotary, x = RoPE(64, 1, scaling=scaling), torch.randn(1, 1, 1025, 64)
    for length in (1024, 1025):
        frequencies, gain = oracle(parameters, 64, 10_000.0, length)
        angles = torch.arange(length)[:, None] * frequencies.double()
        pairs = torch.view_as_complex(x[:, :, :length].double().unflatten(-1, (-1, 2)))
        wanted = torch.view_as_real(pairs * torch.polar(torch.full_like(angles, gain), angles)).flatten(-2)
        assert torch.allclose(rotary.rotate(x[:, :, :length]).double(), wanted, atol=1e-3)
        positions = torch.arange(length).expand(1, -1)
        assert torch.equal(rotary.rotate(x[:, :, :length], positions), rotary.rotate(x[:, :, :length]))


def test_a_cache_is_not_read_on_past_the_length_at_which_longrope_switches():
    scaling = LongRoPEScaling(2.0, 6, (1.0,) * 4, (1.0, 2.0, 3.0, 4.0))
    attention, x = MultiHeadAttention(16, 2, rotary=RoPE(16, 2, scaling=scaling)).eval(), torch.randn(1, 9, 16)
    with torch.no_grad():
        for first, last in ((4, 6), (7, 9)):  # on one side of it
            cache = attention.new_cache(1, 9)
            parts = [attention(x[:, a:b], cache=cache) for a, b in ((0, first), (first, last))]
            assert torch.allclose(torch.cat(parts, dim=1)[:, :last], attention(x[:, :last]), atol=1e-5)
        cache = attention.new_cache(1, 9)
        attention(x[:, :4], cache=cache)
        with pytest.raises(RuntimeError, match="beyond 6 tokens the rotary takes other frequencies, and 4 keys"):
            attention(x[:, 4:7], cache=cache)


def test_a_config_that_cannot_be_followed_is_refused():
    assert Scaling.from_config({"rope_type": "default", "rope_theta": 1e4}) is None
    with pytest.raises(ValueError, match="rope_type 'dynamic' has no counterpart"):
        Scaling.from_config({"rope_type": "dynamic", "factor": 2.0})


def test_ntk_agrees_with_transformers_dynamic_at_its_length():
    utils = pytest.importorskip("transformers.modeling_rope_utils", reason="extra `bench` is not installed")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    )
    frequencies, _ = utils.ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=4096)
    # "dynamic" at length n of a model trained at 1024: factor·n/1024 − (factor − 1) = 7
    assert torch.allclose(NTKScaling(7.0).frequencies(torch.tensor(1e4).double(), 64).float(), frequencies, rtol=1e-6)


def test_ntk_keeps_the_fastest_and_interpolates_the_slowest():
    plain, scaled = RoPE(64, 1).frequencies(), RoPE(64, 1, scaling=NTKScaling(8.0)).frequencies()
    assert scaled[0] == plain[0]
    assert scaled[-1].item() == pytest.approx(plain[-1].item() / 8)


@pytest.mark.parametrize("case", CASES)
def test_scaled_rotations_stay_relative_and_follow_the_base(case):
    rotary = RoPE(64, 1, scaling=CASES[case][0])
    shifts = (0, 1, 17, 300, 900)  # below the length at which LongRoPE switches
    assert reference.relative_spread(rotary, torch.float64, shifts) < 1e-12
    before = rotary.frequencies()
    rotary.set_base(333.0)
    assert not torch.allclose(rotary.frequencies()[1:], before[1:])


def test_yarn_gain_multiplies_the_vectors():
    x = torch.randn(1, 1, 5, 64, generator=torch.Generator().manual_seed(0))
    rotary = RoPE(64, 1, scaling=YaRNScaling(8.0))
    assert torch.allclose(rotary.rotate(x).norm(dim=-1), x.norm(dim=-1) * rotary.gain(), rtol=1e-5)
    assert rotary.gain() > 1.2


@pytest.mark.parametrize(
    "scaling", [Scaling(), LinearScaling(1.0), NTKScaling(1.0), YaRNScaling(1.0), Llama3Scaling(1.0)]
)
def test_a_factor_of_one_changes_nothing(scaling):
    rotary = RoPE(64, 1, scaling=scaling)
    assert torch.allclose(rotary.frequencies(), RoPE(64, 1).frequencies())
    assert rotary.gain() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearScaling(0.5),
        lambda: NTKScaling(float("nan")),
        lambda: ProportionalScaling(1.0, 0.0),
        lambda: LongRoPEScaling(2.0, 1024, (1.0,), (1.0, 2.0)),
        lambda: RoPE(8, 1, scaling=LongRoPEScaling(2.0, 1024, (1.0,), (1.0,))).frequencies(),
        lambda: YaRNScaling(2.0, beta_fast=1.0, beta_slow=2.0),
        lambda: Llama3Scaling(2.0, low_frequency_factor=4.0, high_frequency_factor=4.0),
        lambda: RoPE(2, 1, scaling=NTKScaling(2.0)).frequencies(),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError, match=r"at least|want|proportion|factor"):
        make()
