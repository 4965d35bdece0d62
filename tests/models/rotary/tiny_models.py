"""Tiny, randomly initialised causal language models of every architecture that the installed `transformers` has."""

import inspect
import warnings

import torch

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32, "dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2, "encoder_layers": 1, "decoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "sliding_window": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_layer_start_index": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64, "global_head_dim": 8, "num_global_key_value_heads": 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "ssm_state_size": 8, "state_size": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 8, "mamba_headdim": 16, "n_mamba_heads": 2, "lru_width": 32,
    "attention_window_size": 16, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "use_cache": True, "is_decoder": True,
    "projection_dim": 32, "word_embed_proj_dim": 32, "num_mel_bins": 8, "max_source_positions": 16,
    "max_target_positions": 64, "rope_theta": 500.0, "mamba_d_ssm": 64, "expert_ffn_hidden_size": 16,
    "zero_expert_num": 1, "n_activated_experts": 2, "moe_k": 2,
    "attn_layer_offset": 1, "attn_rotary_emb": 4, "full_attention_interval": 2, "attn_layer_indices": [1],
    "attn_layer_period": 2,
}  # fmt: skip
OVERRIDES = {  # where the default pattern of layers has no attention among the first two
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
}
LATENT = ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu")
OVERRIDES |= {name: {"num_key_value_heads": 4} for name in LATENT}  # latent attention has keys for every head
DROPS = ((), ("head_dim",), ("num_key_value_heads",), ("head_dim", "num_key_value_heads"), ("rope_theta",))
LARGEST = 20_000_000  # parameters


def architectures() -> list[str]:
    """model_types that have a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(model_type: str, theta: float | None = None, **more):
    """A seeded model in evaluation mode, or None where these sizes do not make one.

    Args:
        theta: the base of all its rotaries, instead of the configuration's.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(config_class).parameters) | set(getattr(config_class, "__annotations__", {}))
    sizes = {name: value for name, value in SIZES.items() if name in known}
    sizes |= {**OVERRIDES.get(model_type, {}), **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for drop in DROPS:
            try:
                config = config_class(**{k: v for k, v in sizes.items() if k not in drop})
                set_theta(config, theta)
                config._attn_implementation = "eager"
                with torch.device("meta"):
                    count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
                if count > LARGEST:
                    return None
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config).eval()
                with torch.no_grad():
                    model(tokens(1, 6), use_cache=False)
            except Exception:  # whatever a made-up size may raise
                continue
            return spread(model)
    return None


def set_theta(config, theta):
    """Write a base into all of a configuration's rope parameters."""
    given = getattr(config, "rope_parameters", None) or {}
    for parameters in (given, *(value for value in given.values() if isinstance(value, dict))):
        if theta is not None and "rope_theta" in parameters:
            parameters["rope_theta"] = theta
    if theta is not None and getattr(config, "layer_rope_theta", None):
        config.layer_rope_theta = [theta] * len(config.layer_rope_theta)


def spread(model):
    """Weights so large that positions matter: at the usual initialisation scores are next to zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and set("qk") & set(name.split(".")[-2:][0]):  # q_proj, k_proj, qkv, query_key_value, …
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[-1] ** -0.5)
    return model


def tokens(b, s, seed=0):
    return torch.randint(3, 60, (b, s), generator=torch.Generator().manual_seed(seed))
