"""Installing into every causal language model of `transformers`: right, or refused; never silently wrong."""

import copy

import pytest
import torch
from torch import nn

from cubelet.models.rotary import CombinedRotary, RoPE, install, uninstall
from tests.models.rotary import tiny_models

pytest.importorskip("transformers", reason="extra `bench` is not installed")
SAMPLE = [
    "afmoe", "apertus", "bart", "bert", "bloom", "cohere", "deepseek_v2", "diffllama", "exaone4", "falcon", "gemma2",
    "gemma3_text", "glm", "gpt2", "gpt_neox", "gpt_oss", "gptj", "hunyuan_v1_dense", "llama", "llama4_text", "minimax",
    "modernbert-decoder", "moshi", "olmo2", "persimmon", "phi", "phi3", "qwen3", "qwen3_5_text", "smollm3",
]  # fmt: skip


def logits(model, *arguments, **named):
    return model(*arguments, **named).logits


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def started_as_identity(dims, heads, base, scaling):
    return CombinedRotary(dims, heads, base=base, scaling=scaling, start="identity")


def check(model_type):
    """ "not built", "refused: …", or "equal" after everything that must hold then."""
    model = tiny_models.build(model_type)
    if model is None:
        return "not built"
    x = tiny_models.tokens(2, 9)
    with torch.no_grad():
        before, state = logits(model, x, use_cache=False), {k: v.clone() for k, v in model.state_dict().items()}
        modules = [name for name, _ in model.named_modules()]
        own = own_cache_error(copy.deepcopy(model), x, before)
        try:
            rotaries = install(model, RoPE)
        except ValueError as error:
            assert modules == [name for name, _ in model.named_modules()]
            assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
            assert torch.equal(logits(model, x, use_cache=False), before)
            return f"refused: {error}"
        assert difference(logits(model, x, use_cache=False), before) < 1e-4, "own base"
        assert own is None or difference(cached(model, x), before) < 1e-4 + 2 * own, "cache"
        other = tiny_models.build(model_type, theta=9.0)
        for rotary in rotaries:
            rotary.set_base(9.0)
        assert difference(logits(model, x, use_cache=False), logits(other, x, use_cache=False)) < 1e-4, "another base"
        assert padding_is_as_exact_as(other, model, x), "padding"
        uninstall(model)
        assert torch.equal(logits(model, x, use_cache=False), before), "uninstall"
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items()), "weights"
    try:
        rotaries = install(model, started_as_identity)
    except ValueError as error:
        return "equal, without R" if "R has no place" in str(error) else f"WRONG: {error}"
    after = logits(model, x, use_cache=False)
    assert difference(after, before) < 1e-4, "identity"
    after.square().mean().backward()
    if rotaries[0].head_dim == 2:  # one pair: R commutes with its rotation
        return "equal"
    assert all(rotary.skew.grad.abs().max() > 0 for rotary in rotaries), "gradients in R"
    for rotary in rotaries:
        nn.init.normal_(rotary.skew, std=0.3)
    with torch.no_grad():
        moved = logits(model, x, use_cache=False)
        assert difference(moved, before) > 1e-6, "R"
        assert own is None or difference(cached(model, x), moved) < 1e-4 + 2 * own, "cache with R"
    return "equal"


def cached(model, x):
    """Logits of x read in two steps."""
    step = model(x[:, :5], use_cache=True)
    rest = logits(model, x[:, 5:], past_key_values=step.past_key_values, use_cache=True)
    return torch.cat([step.logits, rest], dim=1)


def own_cache_error(model, x, whole):
    """How inexact the cache of a model as it came is (a linear layer in chunks), None where it has none that works."""
    try:
        return difference(cached(model, x), whole)
    except Exception:
        return None


def padding_is_as_exact_as(other, model, x):
    """Left padding moves the logits as little as in the model that was built with this base."""
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), x), dim=1)
    mask = (torch.arange(12) >= 3).long().expand(2, -1)
    try:
        theirs = logits(other, padded, attention_mask=mask, use_cache=False)
    except Exception:  # a model that takes no mask
        return True
    return difference(logits(model, padded, attention_mask=mask, use_cache=False)[:, 3:], theirs[:, 3:]) < 1e-4


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_of_architectures(model_type):
    result = check(model_type)
    assert result.startswith(("equal", "refused: "))


PARTS = 16  # so that a run that was stopped goes on with --last-failed, or with -k
RESULTS: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_architecture_is_equal_or_refused(part):
    for model_type in tiny_models.architectures()[part::PARTS]:
        try:
            RESULTS[model_type] = check(model_type)
        except Exception as error:
            RESULTS[model_type] = f"WRONG: {type(error).__name__}: {str(error)[:300]}"
        print(f"{model_type}: {RESULTS[model_type]}", flush=True)
    wrong = {name: RESULTS[name] for name in tiny_models.architectures()[part::PARTS] if "WRONG" in RESULTS[name]}
    assert not wrong, wrong


@pytest.mark.slow
def test_most_architectures_with_a_rotary_are_reached():
    if set(tiny_models.architectures()) - set(RESULTS):
        pytest.skip("not all parts of the sweep ran before, in this process")
    built = [result for result in RESULTS.values() if result != "not built"]
    equal = [result for result in built if result.startswith("equal")]
    print(f"{len(equal)} equal of {len(built)} built")
    assert len(equal) >= 85
