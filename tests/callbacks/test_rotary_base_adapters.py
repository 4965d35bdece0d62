"""The adapters against the libraries themselves: a moved base equals a module built with that base."""

import pytest
import torch
from torch import nn

from cubelet.callbacks.rotary_base_adapters import find_bases


class HuggingFaceStyle(nn.Module):
    """What such modules have in common, without the library."""

    def __init__(self, base: float, dims: int = 16, factor: float = 1.0, rope_type: str = "default") -> None:
        super().__init__()
        self.rope_type = rope_type
        frequencies = base ** (-torch.arange(0, dims, 2).float() / dims) / factor
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)


def test_inv_freq_buffers_become_those_of_the_new_base():
    model = nn.ModuleDict({"a": HuggingFaceStyle(10_000.0), "b": HuggingFaceStyle(500.0, factor=4.0)})
    found = find_bases(model, ["inv_freq"])
    assert {name: target.read() for name, target in found.items()} == pytest.approx({"a": 10_000, "b": 500}, rel=1e-4)
    storage = model["a"].inv_freq.data_ptr()
    found["a"].write(20_000.0)
    found["b"].write(750.0)
    torch.testing.assert_close(model["a"].inv_freq, HuggingFaceStyle(20_000.0).inv_freq)
    torch.testing.assert_close(model["a"].original_inv_freq, HuggingFaceStyle(20_000.0).inv_freq)
    torch.testing.assert_close(model["b"].inv_freq, HuggingFaceStyle(750.0, factor=4.0).inv_freq)  # scaling kept
    assert model["a"].inv_freq.data_ptr() == storage
    assert found["a"].read() == pytest.approx(20_000, rel=1e-4)


def test_many_small_moves_do_not_drift():
    module = HuggingFaceStyle(10_000.0)
    (target,) = find_bases(module, ["inv_freq"]).values()
    value = 10_000.0
    for i in range(400):
        value *= 1.0025 if i % 3 else 1 / 1.0025
        target.write(value)
    torch.testing.assert_close(module.inv_freq, HuggingFaceStyle(value).inv_freq)


def test_frequencies_that_forward_recomputes_are_refused():
    with pytest.raises(ValueError, match="dynamic"):
        find_bases(HuggingFaceStyle(10_000.0, rope_type="dynamic"), ["inv_freq"])


def test_only_asked_kinds_are_touched():
    assert find_bases(nn.Sequential(HuggingFaceStyle(100.0)), ["offered", "rotary_embedding_torch"]) == {}
    assert list(find_bases(nn.Sequential(HuggingFaceStyle(100.0)), ["0"])) == ["0"]


def test_llama_of_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    def rotary(base):
        parameters = {"rope_type": "default", "rope_theta": base}
        config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
        return llama.LlamaRotaryEmbedding(config)

    module, x, positions = rotary(10_000.0), torch.zeros(1, 5, 64), torch.arange(3, 8)[None]
    (target,) = find_bases(nn.Sequential(module), ["inv_freq"]).values()
    before = module(x, positions)
    target.write(3000.0)
    for got, expected, old in zip(module(x, positions), rotary(3000.0)(x, positions), before, strict=True):
        torch.testing.assert_close(got, expected)
        assert not torch.allclose(got, old)


SCALED = {
    "llama3": {"factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
}


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_models_end_where_one_built_with_the_new_base_would_be(kind):
    transformers = pytest.importorskip("transformers")

    def model(base):
        parameters = {"rope_type": kind, "rope_theta": base, **SCALED[kind]}
        sizes = {"vocab_size": 50, "hidden_size": 128, "intermediate_size": 32, "num_hidden_layers": 1}
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **sizes, num_attention_heads=2, max_position_embeddings=256, rope_parameters=parameters
            )
        ).eval()

    moved, built, x = model(10_000.0), model(300.0), torch.arange(1, 41)[None]
    (target,) = find_bases(moved, ["inv_freq"]).values()
    for value in (5_000.0, 1_000.0, 300.0):
        target.write(value)
    assert target.read() == pytest.approx(300.0, rel=1e-4)
    torch.testing.assert_close(moved.model.rotary_emb.inv_freq, built.model.rotary_emb.inv_freq)
    torch.testing.assert_close(moved(x).logits, built(x).logits)
    (again,) = find_bases(moved, ["inv_freq"]).values()  # a second fit goes on from there
    assert again.read() == pytest.approx(300.0, rel=1e-4)
    again.write(10_000.0)
    torch.testing.assert_close(moved(x).logits, model(10_000.0)(x).logits)


def test_scaled_frequencies_without_a_configuration_are_refused():
    with pytest.raises(ValueError, match="cannot be built again from its configuration"):
        find_bases(HuggingFaceStyle(10_000.0, rope_type="yarn"), ["inv_freq"])


def test_gemma_style_modules_with_one_buffer_per_layer_type():
    module = nn.Module()
    module.rope_type = {"full": "default", "sliding": "default"}
    for key, base in (("full", 1e6), ("sliding", 1e4)):
        module.register_buffer(f"{key}_inv_freq", HuggingFaceStyle(base).inv_freq)
        module.register_buffer(f"{key}_original_inv_freq", HuggingFaceStyle(base).inv_freq.clone())
    found = find_bases(nn.ModuleDict({"rope": module}), ["inv_freq"])
    assert list(found) == ["rope.full", "rope.sliding"]
    found["rope.sliding"].write(2e4)
    torch.testing.assert_close(module.sliding_inv_freq, HuggingFaceStyle(2e4).inv_freq)
    torch.testing.assert_close(module.full_inv_freq, HuggingFaceStyle(1e6).inv_freq)


@pytest.mark.parametrize("learned", [False, True])
def test_rotary_embedding_torch(learned):
    library = pytest.importorskip("rotary_embedding_torch")

    def rotary(base):
        return library.RotaryEmbedding(dim=16, theta=base, learned_freq=learned)

    module, x = rotary(10_000.0), torch.randn(1, 2, 6, 16, generator=torch.Generator().manual_seed(0))
    (target,) = find_bases(nn.Sequential(module), ["rotary_embedding_torch"]).values()
    old = module.rotate_queries_or_keys(x)  # fills the module's cache of angles
    target.write(3000.0)
    torch.testing.assert_close(module.rotate_queries_or_keys(x), rotary(3000.0).rotate_queries_or_keys(x))
    assert not torch.allclose(module.rotate_queries_or_keys(x), old)
    assert module.freqs.requires_grad == learned


def test_pixel_frequencies_have_no_base():
    library = pytest.importorskip("rotary_embedding_torch")
    module = library.RotaryEmbedding(dim=16, freqs_for="pixel")
    assert find_bases(nn.Sequential(module), ["rotary_embedding_torch"]) == {}


def test_frequencies_that_do_not_fall_are_refused():
    module = HuggingFaceStyle(100.0)
    module.inv_freq.fill_(1.0)
    with pytest.raises(ValueError, match="inv_freq does not hold falling"):
        find_bases(module, ["inv_freq"])
