"""install and uninstall on randomly initialised `transformers` models and on the common forms of rotary modules."""

import copy
import functools

import pytest
import torch
from torch import nn

from cubelet.models.rotary import (
    AxialRotary,
    CombinedRotary,
    LearnedBaseRoPE,
    QuaternionRotary,
    RoPE,
    install,
    load_rotary,
    uninstall,
)
from tests.reference import rotary as reference


def llama(kind="Llama", **options):
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    torch.manual_seed(0)
    settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "pad_token_id": 0,
    }
    if kind == "Qwen3":
        settings["head_dim"] = 8
    config = getattr(library, f"{kind}Config")(**{**settings, **options})
    return getattr(library, f"{kind}ForCausalLM")(config).eval()


def whisper():
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    torch.manual_seed(0)
    config = library.WhisperConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=6,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return library.WhisperForConditionalGeneration(config).eval()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(b=2, s=9, seed=0):
    return torch.randint(3, 50, (b, s), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mistral"])
@pytest.mark.parametrize("at", [None, "model.rotary_emb", "model.layers"])
def test_rope_in_place_of_llamas_own_changes_nothing(kind, at):
    model, x = llama(kind), tokens()
    before = model(x).logits
    rotaries = install(model, RoPE(32, 4, base=500.0), at=at)
    assert len(rotaries) == 1
    assert torch.allclose(model(x).logits, before, atol=1e-5)
    rotaries[0].set_base(20.0)  # and it is ours that turns now
    assert not torch.allclose(model(x).logits, before, atol=1e-4)


@pytest.mark.parametrize("make", [lambda d, h: CombinedRotary(d, h), lambda d, h: QuaternionRotary(d, h)])
def test_uninstall_restores_exactly(make):
    model, x = llama(), tokens()
    before, names, parts = model(x).logits, set(model.state_dict()), dict(model.named_modules())
    rotaries = install(model, lambda d, h: reference.nudge(make(d, h)))
    assert len(rotaries) == 2
    assert not torch.allclose(model(x).logits, before, atol=1e-4)
    assert all(name.startswith("cubelet_rotary") for name in set(model.state_dict()) - names)
    with pytest.raises(ValueError, match="has a rotary already"):
        install(model, make)
    uninstall(model)
    assert torch.equal(model(x).logits, before)
    assert set(model.state_dict()) == names
    assert dict(model.named_modules()) == parts
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no rotary is installed"):
        uninstall(model)


def test_generation_with_a_cache_equals_generation_without():
    model, x = llama(), tokens(1, 5)
    install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    full, cached = (model.generate(x, max_new_tokens=9, do_sample=False, use_cache=use) for use in (False, True))
    assert full.tolist() == cached.tolist()
    step = model(x[:, :3], use_cache=True)
    rest = model(x[:, 3:], past_key_values=step.past_key_values)
    assert torch.allclose(rest.logits, model(x).logits[:, 3:], atol=1e-5)


def test_left_padding_does_not_move_scores():
    model, x = llama(), tokens(1, 6)
    install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), x), dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    positions = (torch.arange(9) - 3).clamp(min=0)[None]
    got = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert torch.allclose(got, model(x).logits, atol=1e-5)


def test_installed_rotaries_train_and_survive_deepcopy():
    model, x = llama().train(), tokens()
    rotaries = install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    model.activation_checkpointing_enable()
    model(x, labels=x).loss.backward()
    for rotary in rotaries:
        assert rotary.skew.grad.abs().max() > 0
        assert rotary in model.modules()
    twin = copy.deepcopy(model.eval())
    before = model(x).logits
    assert torch.equal(twin(x).logits, before)
    nn.init.normal_(rotaries[0].skew)
    assert torch.equal(twin(x).logits, before)
    assert not torch.allclose(model(x).logits, before, atol=1e-4)
    uninstall(twin)
    assert torch.allclose(twin(x).logits, llama()(x).logits, atol=1e-6)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_layers_that_share_a_learned_rotary_make_its_table_once(reentrant, monkeypatch):
    model, x, calls = llama(num_hidden_layers=4).train(), tokens(), []
    shared = reference.nudge(LearnedBaseRoPE(32, 4, base=500.0), 0.03)
    install(model, shared)
    original = shared._cis
    monkeypatch.setattr(shared, "_cis", lambda *a, **k: calls.append(1) or original(*a, **k))
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model(x, labels=x).loss.backward()
    assert len(calls) == (2 if reentrant else 1)  # a reentrant checkpoint runs without a graph first
    apart = llama(num_hidden_layers=4).train()
    rotaries = install(apart, lambda d, h: reference.nudge(LearnedBaseRoPE(d, h, base=500.0), 0.03))
    apart(x, labels=x).loss.backward()
    total = sum(rotary.base_shift.grad for rotary in rotaries)
    assert torch.allclose(shared.base_shift.grad, total, rtol=1e-4)


def test_whisper_decoder_gets_self_attention_rotary_and_its_cross_attention_none():
    model, x, mel = whisper(), tokens(), draw(2, 8, 12)
    before = model(mel, decoder_input_ids=x).logits
    rotaries = install(model, RoPE(32, 4), at="model.decoder")
    assert not torch.allclose(model(mel, decoder_input_ids=x).logits, before, atol=1e-4)
    # Turning queries and keys alike by a constant changes nothing: scores are relative, the cross-attention unturned.
    shifted = copy.deepcopy(model)
    rotary = shifted.cubelet_rotary.rotaries[0]
    rotate = rotary.rotate
    rotary.rotate = rotary.rotate_keys = lambda t, positions: rotate(t, torch.arange(t.shape[2]) + 5)
    assert torch.allclose(shifted(mel, decoder_input_ids=x).logits, model(mel, decoder_input_ids=x).logits, atol=1e-5)
    step = model(mel, decoder_input_ids=x[:, :4], use_cache=True)
    rest = model(mel, decoder_input_ids=x[:, 4:], past_key_values=step.past_key_values)
    assert torch.allclose(rest.logits, model(mel, decoder_input_ids=x).logits[:, 4:], atol=1e-5)
    assert len(rotaries) == 1
    uninstall(model)
    assert torch.equal(model(mel, decoder_input_ids=x).logits, before)


def test_after_an_embedding_positions_follow_the_cache():
    model, x = llama(), tokens()
    rotary = reference.nudge(CombinedRotary(32, 4))
    bare = model.model.embed_tokens(x)
    install(model, rotary, at="model.embed_tokens")
    full = model(x).logits
    assert torch.allclose(full, reference_logits(model, rotary(bare)), atol=1e-6)
    step = model(x[:, :3], use_cache=True)
    rest = model(x[:, 3:], past_key_values=step.past_key_values)
    assert torch.allclose(rest.logits, full[:, 3:], atol=1e-5)
    uninstall(model)
    assert torch.equal(model.model.embed_tokens(x), bare)


def reference_logits(model, embeddings):
    return model(inputs_embeds=embeddings).logits


def test_after_an_embedding_of_a_plain_model():
    model, x = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 4)), tokens()
    wanted = model[1](RoPE(24, 3)(model[0](x)))
    install(model, RoPE, at="0")  # a class is made at the embedding's width, as one head
    one_head = model[1](RoPE(24, 1)(nn.functional.embedding(x, model[0].weight)))
    assert torch.equal(model(x), one_head)
    uninstall(model)
    install(model, RoPE(24, 3), at="0")
    assert torch.equal(model(x), wanted)


class OnQueriesAndKeys(nn.Module):
    def forward(self, positions, query, key):
        return query, key


class OnOne(nn.Module):
    def forward(self, x, *, input_pos=None):
        return x


def test_modules_of_the_common_forms():
    rotary, q, k = RoPE(16, 2), draw(2, 2, 5, 8), draw(2, 1, 5, 8, seed=1)
    model, positions = nn.ModuleDict({"pair": OnQueriesAndKeys(), "one": OnOne()}), torch.arange(5) + 3
    original = model["pair"]
    install(model, rotary, at="pair")
    install(model, rotary, at="one", head_axis=2)
    turned = model["pair"](positions, q, key=k)
    assert torch.equal(turned[0], rotary.rotate(q, positions))
    assert torch.equal(turned[1], rotary.rotate(k, positions))
    x = q.transpose(1, 2)
    assert torch.equal(model["one"](x, input_pos=positions), rotary.rotate(q, positions).transpose(1, 2))
    assert torch.equal(model["one"](x), rotary.rotate(q).transpose(1, 2))
    uninstall(model)
    assert model["pair"] is original
    assert torch.equal(model["one"](x), x)


def test_half_layout_pairs_a_feature_with_the_one_half_a_head_further():
    rotary, q = RoPE(16, 2), draw(1, 2, 5, 8)
    model = nn.ModuleDict({"pair": OnQueriesAndKeys()})
    install(model, rotary, at="pair", layout="half")
    turned, _ = model["pair"](torch.arange(5), q, q)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    assert torch.allclose(turned[..., order], rotary.rotate(q[..., order]), atol=1e-6)


def test_errors_say_what_to_do():
    model = nn.ModuleDict({"pair": OnQueriesAndKeys(), "embed": nn.Embedding(5, 12)})
    with pytest.raises(ValueError, match=r"no submodule 'pare'; did you mean \['pair'\]"):
        install(model, RoPE(16, 2), at="pare")
    with pytest.raises(ValueError, match="no self-attention that takes tables, or with q_proj and k_proj"):
        install(model, RoPE(16, 2))
    with pytest.raises(ValueError, match="the width at pair is unknown"):
        install(model, RoPE, at="pair")
    with pytest.raises(ValueError, match="rotary's dims 16 are not the width 12 of embed"):
        install(model, RoPE(16, 2), at="embed")
    with pytest.raises(ValueError, match="layout 'split' is unknown"):
        install(model, RoPE(16, 2), at="pair", layout="split")
    with pytest.raises(ValueError, match="head_axis 3"):
        install(model, RoPE(16, 2), at="pair", head_axis=3)
    assert not hasattr(model, "cubelet_rotary")


def test_wrong_head_dim_leaves_the_model_as_it_was():
    model, x = llama(), tokens()
    before = model(x).logits
    with pytest.raises(ValueError, match=r"rotary's head_dim 16 is not the head_dim 8 of model\.layers\.0\.self_attn"):
        install(model, RoPE(32, 2))
    assert torch.equal(model(x).logits, before)
    install(model, RoPE(32, 4))


def test_an_attention_that_rotates_a_part_says_which():
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1}
    config = library.StableLmConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    model, x = library.StableLmForCausalLM(config).eval(), tokens()
    before = model(x).logits
    with pytest.raises(ValueError, match=r"head_dim 16 is not what model.layers.0.self_attn rotates, 8 of 16 features"):
        install(model, RoPE(64, 4))
    assert torch.equal(model(x).logits, before)
    install(model, RoPE(32, 4, base=500.0))
    assert torch.allclose(model(x).logits, before, atol=1e-5)


# -- what was installed stays right --


def identity_rotary(dims, heads, base, scaling):
    """Starts as the model's own RoPE: the recommended way into a pretrained model."""
    return CombinedRotary(dims, heads, base=base, scaling=scaling, start="identity")


def test_a_rotary_that_starts_as_the_identity_does_not_move_the_model():
    model, x = llama(), tokens()
    before = model(x).logits
    rotaries = install(model, identity_rotary)
    assert [rotary.base.item() for rotary in rotaries] == [500.0, 500.0]  # the model's own
    assert torch.allclose(model(x).logits, before, atol=1e-5)
    model(x, labels=x).loss.backward()
    assert all(rotary.skew.grad.abs().max() > 0 for rotary in rotaries)


def test_factories_are_told_what_they_ask_for():
    asked = []

    def factory(dims, heads, *, base, scaling, layer, layer_type):
        asked.append((dims, heads, base, scaling, layer, layer_type))
        return RoPE(dims, heads, base=base)

    install(llama(), factory)
    assert asked == [(32, 4, 500.0, None, f"model.layers.{i}.self_attn", None) for i in range(2)]
    model = llama()
    assert install(model, functools.partial(RoPE, base=9.0))[0].base.item() == 9  # what is bound is not overruled


def test_another_base_gives_the_logits_of_a_model_built_with_it():
    model, x = llama(), tokens()
    other = llama(rope_parameters={"rope_type": "default", "rope_theta": 20.0})
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(x).logits, other(x).logits, atol=1e-4)
    install(model, RoPE(32, 4, base=20.0))
    assert torch.allclose(model(x).logits, other(x).logits, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_lora_on_the_projections_keeps_the_rotation(merged):
    peft = pytest.importorskip("peft", reason="extra `bench` is not installed")
    model, x = llama(), tokens()
    install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    before = model(x).logits
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj"], r=2, init_lora_weights=True)
    wrapped = peft.get_peft_model(model, config)
    assert torch.allclose(wrapped(x).logits, before, atol=1e-5)  # LoRA starts at nothing
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted = wrapped(x).logits
    assert not torch.allclose(adapted, before, atol=1e-4)
    # The truth: the same change of the weights themselves.
    plain = llama()
    install(plain, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    plain.cubelet_rotary.load_state_dict(model.cubelet_rotary.state_dict())
    for ours, theirs in zip(plain.model.layers, model.model.layers, strict=True):
        for name in ("q_proj", "k_proj"):
            child = getattr(theirs.self_attn, name)
            getattr(ours.self_attn, name).weight.data += child.get_delta_weight("default")
    assert torch.allclose(adapted, plain(x).logits, atol=1e-5)
    if merged:
        assert torch.allclose(wrapped.merge_and_unload()(x).logits, adapted, atol=1e-5)


@pytest.mark.parametrize("place", ["tables and R", "projections"])
def test_a_projection_that_is_replaced_keeps_the_rotation(place):
    if place == "tables and R":
        model, x = llama(), {"input_ids": tokens()}
        install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
        attentions = [layer.self_attn for layer in model.model.layers]
    else:
        model, x = whisper(), {"input_features": draw(2, 8, 12), "decoder_input_ids": tokens()}
        install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)), at="model.decoder")
        attentions = [layer.self_attn for layer in model.model.decoder.layers]
    before = model(**x).logits
    for attention in attentions:
        for name in ("q_proj", "k_proj"):
            old = getattr(attention, name)
            setattr(attention, name, nn.Linear(old.in_features, old.out_features, bias=old.bias is not None))
            getattr(attention, name).load_state_dict(old.state_dict())
    assert torch.equal(model(**x).logits, before)
    uninstall(model)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_merging_an_installed_rotary_changes_nothing():
    model, x = llama(), tokens()
    rotaries = install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))
    before = model(x).logits
    for rotary, layer in zip(rotaries, model.model.layers, strict=True):
        rotary.merge(layer.self_attn.q_proj, layer.self_attn.k_proj)
        assert rotary.mixing() is None
    assert torch.allclose(model(x).logits, before, atol=1e-5)
    normed = llama("Qwen3")
    rotary = install(normed, lambda d, h: CombinedRotary(d, h))[0]
    with pytest.raises(ValueError, match="behind a norm in this model and cannot be merged"):
        rotary.merge(normed.model.layers[0].self_attn.q_proj)


def test_saved_and_loaded_again_it_is_exactly_the_same(tmp_path):
    model, x = llama(), tokens()
    install(model, lambda d, h: reference.nudge(CombinedRotary(d, h)))[0].set_base(77.7)
    wanted = model(x).logits
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with pytest.raises(ValueError, match="nothing is installed"):
        load_rotary(again, tmp_path)
    install(again, lambda d, h: CombinedRotary(d, h))
    load_rotary(again, tmp_path)
    assert torch.equal(again(x).logits, wanted)
    bare = tmp_path / "bare"
    llama().save_pretrained(bare)
    with pytest.raises(ValueError, match="holds no rotary"):
        load_rotary(again, bare)


def test_keys_of_another_base_are_refused():
    model, x = llama(), tokens()
    rotaries = install(model, RoPE)
    step = model(x[:, :4], use_cache=True)
    model(x[:, 4:6], past_key_values=step.past_key_values)
    rotaries[1].set_base(9.0)
    with pytest.raises(RuntimeError, match="6 keys rotated with the old base are cached"):
        model(x[:, 6:], past_key_values=step.past_key_values)
    model(x, use_cache=True)  # a new cache is fine


def test_nothing_is_half_installed():
    model, x = llama(), tokens()
    before, names = model(x).logits, set(model.state_dict())

    def second_fails(dims, heads, layer):
        return RoPE(dims, heads) if "layers.0" in layer else AxialRotary(dims, heads, axes=2)

    with pytest.raises(ValueError, match=r"layers\.1\.self_attn.*more than rotations of pairs"):
        install(model, second_fails)
    assert torch.equal(model(x).logits, before)
    assert set(model.state_dict()) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_places_that_cannot_be_served_are_refused():
    parts = {"norm": nn.LayerNorm(16), "mlp": nn.Sequential(nn.Linear(16, 16)), "embed": nn.Embedding(5, 16)}
    model = nn.ModuleDict({**parts, "attention": nn.MultiheadAttention(16, 2)})
    library = pytest.importorskip("rotary_embedding_torch", reason="extra `bench` is not installed")
    model["rotary"] = library.RotaryEmbedding(dim=8)
    for name in ("norm", "mlp", "attention", "rotary", "mlp.0"):
        with pytest.raises(ValueError, match="there is nothing to rotate"):
            install(model, RoPE(16, 2), at=name)
    install(model, RoPE(16, 2), at="embed")


def test_an_attention_with_positions_of_its_own_is_refused():
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    config = library.GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    model = library.GPTJForCausalLM(config).eval()
    with pytest.raises(ValueError, match="has positions of its own: its last output moves"):
        install(model, RoPE, at="transformer")
    with pytest.raises(ValueError, match=r"no rotary that could be replaced; to add one .* name a part with at="):
        install(model, RoPE)
    assert not hasattr(model, "cubelet_rotary")


def test_a_norm_with_gains_between_projection_and_rotation_is_found():
    """Fine for tables, no place for R: `q_layernorm` of StableLM and Phi."""
    library = pytest.importorskip("transformers", reason="extra `bench` is not installed")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "qk_layernorm": True}
    model, x = library.StableLmForCausalLM(library.StableLmConfig(**sizes, **heads)).eval(), tokens()
    before = model(x).logits
    install(model, RoPE)
    assert torch.allclose(model(x).logits, before, atol=1e-5)
    uninstall(model)
    with pytest.raises(ValueError, match="R has no place in it"):
        install(model, CombinedRotary)
