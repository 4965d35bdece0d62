"""Installing into vision models, encoders and models whose positions have several axes: right, or refused."""

import inspect

import pytest
import torch
from torch import nn

from cubelet.models.rotary import AxialRotary, LieRERotary, RoPE, grid_positions, install, uninstall
from tests.models.rotary import tiny_models

SIZES = {
    **tiny_models.SIZES, "image_size": 16, "patch_size": 4, "num_channels": 3, "depth": 2, "hidden_dim": 32,
    "pooler_hidden_size": 32, "embedding_size": 32, "rope_theta": 500.0, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_key_value_heads": 4,
}  # fmt: skip


def build(model_type, **more):
    """A seeded tiny model without head."""
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(config_class).parameters) | set(getattr(config_class, "__annotations__", {}))
    config = config_class(**{name: value for name, value in SIZES.items() if name in known}, **more)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return tiny_models.spread(library.AutoModel.from_config(config).eval())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hidden(model, **arguments):
    with torch.no_grad():
        return model(**arguments).last_hidden_state


def untouched(model, before, **arguments):
    assert torch.equal(hidden(model, **arguments), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not hasattr(model, "cubelet_rotary")
    return True


# -- images: patches on a grid, behind tokens that have no place in it --

VISION = {  # where the attentions are, tokens before the patches, where position embeddings are
    "vit": ("layers", 1, "embeddings.position_embeddings"),
    "clip_vision_model": ("encoder", 1, "embeddings.position_embedding.weight"),
    "siglip_vision_model": ("encoder", 0, "embeddings.position_embedding.weight"),
    "dinov2": ("encoder", 1, "embeddings.position_embeddings"),
    "dinov2_with_registers": ("encoder", 5, "embeddings.position_embeddings"),
    "internvl_vision": ("encoder", 1, "embeddings.position_embeddings"),
}


def patches_exchanged(image, order):
    """The image with its 4 × 4 patches of 4 × 4 pixels in another order."""
    patches = nn.functional.unfold(image, 4, stride=4)[..., order]  # (b, 48, 16)
    return nn.functional.fold(patches, (16, 16), 4, stride=4)


@pytest.mark.parametrize("make", [AxialRotary, LieRERotary])
@pytest.mark.parametrize("name", VISION)
def test_patches_are_rotated_by_their_place_in_the_grid(name, make):
    """Without position embeddings, patches that move together with their positions only change places in the output."""
    at, prefix, embeddings = VISION[name]
    model, image = build(name), draw(2, 3, 16, 16)
    with torch.no_grad():
        model.get_parameter(embeddings).zero_()
    before = hidden(model, pixel_values=image)
    positions, order = (
        grid_positions(4, 4, prefix=prefix),
        torch.randperm(16, generator=torch.Generator().manual_seed(0)),
    )
    moved = torch.cat((torch.arange(prefix), prefix + order))

    def rotary(dims, heads):
        torch.manual_seed(1)
        return make(dims, heads, axes=2)

    install(model, rotary, at=at, positions=positions)
    rotated = hidden(model, pixel_values=image)
    exchanged = hidden(model, pixel_values=patches_exchanged(image, order))
    assert not torch.allclose(rotated, before, atol=1e-4)
    assert not torch.allclose(exchanged, rotated[:, moved], atol=1e-4)
    uninstall(model)
    install(model, rotary, at=at, positions=positions[moved])
    assert torch.allclose(hidden(model, pixel_values=patches_exchanged(image, order)), rotated[:, moved], atol=1e-4)
    uninstall(model)
    if make is AxialRotary:  # relative: the whole grid and its class token may stand elsewhere
        install(model, rotary, at=at, positions=positions + 3)
        assert torch.allclose(hidden(model, pixel_values=image), rotated, atol=1e-4)
        uninstall(model)
    untouched(model, before, pixel_values=image)


def test_positions_that_do_not_fit_are_refused():
    model, image = build("vit"), draw(1, 3, 16, 16)
    before = hidden(model, pixel_values=image)

    def axial(dims, heads):
        return AxialRotary(dims, heads, axes=2)

    for rotary, positions, message in (
        (axial, grid_positions(4, 4), r"shape \(16, 2\), and it gets 17 tokens: want \(17, 2\) \(a class token"),
        (axial, None, "wants positions of 2 axes; give positions="),
        (RoPE, grid_positions(4, 4, prefix=1), r"want \(17,\)"),
        (
            lambda d, h: AxialRotary(d, 2 * h, axes=2),
            grid_positions(4, 4, prefix=1),
            "head_dim 4 is not the head_dim 8",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            install(model, rotary, at="layers", positions=positions)
    with pytest.raises(ValueError, match="no rotary that could be replaced; to add one"):
        install(model, RoPE)
    assert untouched(model, before, pixel_values=image)
    plain = nn.ModuleDict({"embed": nn.Embedding(5, 16)})
    with pytest.raises(ValueError, match="positions= is for attentions without positions of their own; embed is none"):
        install(plain, RoPE(16, 2), at="embed", positions=torch.arange(4))


def test_a_rotary_that_cannot_run_there_leaves_nothing_behind():
    model, image = build("vit"), draw(1, 3, 16, 16)
    before = hidden(model, pixel_values=image)

    class Faulty(AxialRotary):
        def apply_positions(self, x, positions=None, **options):
            raise RuntimeError("not today")

    with pytest.raises(ValueError, match="with the rotary installed the model cannot run: not today"):
        install(model, lambda d, h: Faulty(d, h, axes=2), at="layers", positions=grid_positions(4, 4, prefix=1))
    assert untouched(model, before, pixel_values=image)


@pytest.mark.parametrize("name", ["dinov3_vit", "pixtral", "mlcd_vision_model"])
def test_vision_models_with_a_rotary_of_their_own_are_refused(name):
    model, image = build(name), draw(1, 3, 16, 16)
    before = hidden(model, pixel_values=image)
    for options in ({}, {"at": next(x for x, _ in model.named_children() if x not in ("embeddings", "patch_conv"))}):
        with pytest.raises(ValueError, match=r"tables|nothing to rotate|positions of the model's own"):
            install(model, RoPE, **options)
    assert untouched(model, before, pixel_values=image)


# -- encoders of text and sound --


@pytest.mark.parametrize("name", ["modernbert", "eurobert", "nomic_bert"])
def test_encoders_with_tables_keep_their_own_output(name):
    model, x = build(name), tiny_models.tokens(2, 9)
    before = hidden(model, input_ids=x)
    rotaries = install(model, RoPE)
    assert torch.allclose(hidden(model, input_ids=x), before, atol=1e-4)
    for rotary in rotaries:
        rotary.set_base(3.0)
    assert not torch.allclose(hidden(model, input_ids=x), before, atol=1e-4)
    uninstall(model)
    assert untouched(model, before, input_ids=x)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "deberta", "esm"])
def test_encoders_that_cannot_be_served_are_refused(name):
    model, x = build(name), tiny_models.tokens(2, 9)
    before = hidden(model, input_ids=x)
    for at in (None, "encoder"):
        with pytest.raises(ValueError, match=r"no self-attention|no attention|nothing to rotate|no rotary|tables"):
            install(model, RoPE, at=at)
    assert untouched(model, before, input_ids=x)


def test_an_encoder_of_sound_gets_rotated_queries_and_keys():
    """wav2vec 2: frames that change places change the others, once a rotary is there and the convolution is not."""
    model, sound = build("wav2vec2"), draw(1, 2000)
    model.encoder.pos_conv_embed.forward = lambda x: torch.zeros_like(x)
    features = draw(1, 7, 32)
    order = torch.tensor([3, 0, 1, 2, 4, 6, 5])
    with pytest.raises(ValueError, match="give example="):
        install(model, RoPE, at="encoder")
    with torch.no_grad():
        encode = lambda x: model.encoder(x).last_hidden_state  # noqa: E731
        assert torch.allclose(encode(features[:, order]), encode(features)[:, order], atol=1e-5)
        install(model, RoPE, at="encoder", example={"input_values": sound})
        assert not torch.allclose(encode(features[:, order]), encode(features)[:, order], atol=1e-4)
        rotated = encode(features)
        uninstall(model)
        install(model, RoPE, at="encoder", example={"input_values": sound})
        assert torch.equal(encode(features), rotated)


def test_the_encoder_of_whisper_is_rotated_by_frames():
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "num_mel_bins": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    config = library.WhisperConfig(**sizes, **tokens, max_source_positions=6)
    model, mel = tiny_models.spread(library.WhisperModel(config).eval()), draw(2, 8, 12)
    arguments = {"input_features": mel, "decoder_input_ids": tiny_models.tokens(2, 5) % 50}
    before, rotated = hidden(model, **arguments), []
    for positions in (None, torch.arange(6) + 3, 2 * torch.arange(6)):
        install(model, RoPE, at="encoder", positions=positions)
        rotated.append(hidden(model, **arguments))
        uninstall(model)
    assert torch.allclose(rotated[1], rotated[0], atol=1e-5)  # relative, and the decoder's cross-attention unturned
    assert not torch.allclose(rotated[2], rotated[0], atol=1e-5)
    assert not torch.allclose(before, rotated[0], atol=1e-5)
    assert untouched(model, before, **arguments)


# -- positions of several axes --


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_three_axes_of_text_and_images_are_refused(name):
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
    text |= {"head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"intermediate_size": 48, "deepstack_visual_indexes": [0], "patch_size": 4}
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[name](text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model, x = library.AutoModel.from_config(config).eval(), tiny_models.tokens(1, 7)
    before = hidden(model, input_ids=x)
    with pytest.raises(ValueError, match=r"several axes|tables"):
        install(model, RoPE)
    with pytest.raises(ValueError, match=r"several axes|tables"):
        install(model, RoPE, at="language_model")
    assert untouched(model, before, input_ids=x)
