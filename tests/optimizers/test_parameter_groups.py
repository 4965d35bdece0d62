"""Where each kind of parameter goes. The modules here are foreign: nothing is imported from cubelet.models."""

import warnings

import pytest
import torch
from torch import nn

from cubelet.optimizers import FAM, parameter_groups


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)
        self.norm = nn.RMSNorm(8)
        self.rotary = RotaryEmbedding()
        self.relative_bias = nn.Parameter(torch.zeros(7, 2))


class RotaryEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.theta_scale = nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(()))
        self.mix = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4, bias=False))


class Turner(nn.Module):
    """A rotary under another name: it offers set_base."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def set_base(self, base): ...


class ContentGated(SelfAttention):
    """Attention by ancestry, not by name."""


class Marked(nn.Module):
    is_attention = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)


class AttentionBlock(nn.Module):
    """A container: its MLP is no attention."""

    def __init__(self):
        super().__init__()
        self.attention, self.mlp = SelfAttention(), nn.Linear(8, 8)


class CustomNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, 4))


class ShortConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(2, 8))


class LearnedSinusoidal(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, 8))


class Bare(nn.Module):
    """Parameters that only their names tell."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(4, 4)))


def routed(model):
    """Name of parameter → name of group."""
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    return {name: group["name"] for group in groups for name, _ in group["params"]}


ROUTES = [
    (nn.Conv1d(3, 4, 5), {"weight": "conv", "bias": "conv_no_decay"}),
    (nn.Conv2d(3, 4, 5), {"weight": "conv", "bias": "conv_no_decay"}),
    (nn.ConvTranspose3d(3, 4, 5), {"weight": "conv", "bias": "conv_no_decay"}),
    (ShortConv(), {"kernel": "conv"}),
    (nn.Embedding(5, 4), {"weight": "embedding"}),
    (nn.EmbeddingBag(5, 4), {"weight": "embedding"}),
    (LearnedSinusoidal(), {"table": "embedding_no_decay"}),
    (nn.LayerNorm(4), {"weight": "norm", "bias": "norm"}),
    (nn.RMSNorm(4), {"weight": "norm"}),
    (nn.BatchNorm1d(4), {"weight": "norm", "bias": "norm"}),
    (nn.GroupNorm(2, 4), {"weight": "norm", "bias": "norm"}),
    (CustomNorm(), {"gain": "norm"}),
    (nn.Linear(4, 4), {"weight": "rest", "bias": "rest_no_decay"}),
    (nn.MultiheadAttention(4, 2), {
        "in_proj_weight": "attention", "in_proj_bias": "attention_no_decay",
        "out_proj.weight": "attention", "out_proj.bias": "attention_no_decay",
    }),
    (SelfAttention(), {
        "qkv.weight": "attention", "qkv.bias": "attention_no_decay", "out.weight": "attention", "norm.weight": "norm",
        "rotary.matrix": "attention_no_decay", "rotary.theta_scale": "attention_no_decay",
        "rotary.mix.parametrizations.weight.original": "attention_no_decay", "relative_bias": "attention_no_decay",
    }),
    (Marked(), {"linear.weight": "attention", "linear.bias": "attention_no_decay"}),
    (Turner(), {"matrix": "rest_no_decay"}),
    (Bare(["wte"]), {"wte": "embedding"}),
    (Bare(["token_embedding"]), {"token_embedding": "embedding"}),
    (Bare(["ln_1"]), {"ln_1": "norm"}),
    (Bare(["conv1"]), {"conv1": "conv"}),
    (Bare(["c_attn"]), {"c_attn": "attention"}),
    (Bare(["q_proj", "v_proj"]), {"q_proj": "attention", "v_proj": "attention"}),
    (Bare(["format", "convert", "equal"]), {"format": "rest", "convert": "rest", "equal": "rest"}),
    (Bare(["log_freq", "angles", "output_bias", "gain"]), dict.fromkeys(
        ["log_freq", "angles", "output_bias", "gain"], "rest_no_decay")),
    (Bare(["rotary_mix"]), {"rotary_mix": "rest_no_decay"}),
    (nn.ModuleDict({"base_model": nn.Linear(4, 4)}), {"base_model.weight": "rest", "base_model.bias": "rest_no_decay"}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "wanted"), ROUTES, ids=lambda value: type(value).__name__)
def test_routes(model, wanted):
    assert routed(model) == wanted


def test_attention_by_ancestry_and_containers_of_it():
    assert routed(ContentGated()) == routed(SelfAttention())
    found = routed(AttentionBlock())
    assert found["mlp.weight"] == "rest"
    assert found["attention.qkv.weight"] == "attention"


def test_tied_embeddings_are_embeddings_once_whichever_comes_first():
    for order in (("head", "embedding"), ("embedding", "head")):
        model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["embedding"].weight
        model = nn.ModuleDict({name: model[name] for name in order})
        assert routed(model) == {f"{order[0]}.weight": "embedding"}


def test_every_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none():
    model = nn.Sequential(nn.Embedding(9, 8), AttentionBlock(), nn.Conv1d(8, 8, 3), nn.LayerNorm(8), Turner())
    model[2].weight.requires_grad_(False)
    groups = parameter_groups(model)
    found = [param for group in groups for _, param in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {param for param in model.parameters() if param.requires_grad}
    assert [name for group in groups for name, _ in group["params"]]
    names = dict(model.named_parameters())
    assert all(names[name] is param for group in groups for name, param in group["params"])


def test_settings_of_the_kinds():
    model = nn.Sequential(nn.Embedding(9, 8), AttentionBlock(), nn.Conv1d(8, 8, 3), nn.LayerNorm(8))
    groups = {group["name"]: group for group in parameter_groups(model, lr=2.0, weight_decay=0.1)}
    keys = ("handler", "alpha", "n_bands", "lr", "weight_decay")
    found = {name: tuple((group | group["fam"])[key] for key in keys) for name, group in groups.items()}
    assert found == {
        "conv": ("conv", 0.9, 10, 2.0, 0.1),
        "conv_no_decay": ("conv", 0.9, 10, 2.0, 0.0),
        "attention": ("attention", 0.92, 12, 2.0, 0.1),
        "attention_no_decay": ("attention", 0.92, 12, 2.0, 0.0),
        "embedding": ("embedding", 0.95, 8, 1.6, pytest.approx(0.15)),
        "norm": ("default", 0.9, 4, 2.0, 0.0),
        "rest": ("default", 0.9, 8, 2.0, 0.1),
        "rest_no_decay": ("default", 0.9, 8, 2.0, 0.0),
    }


@pytest.mark.parametrize("make", [FAM, torch.optim.AdamW, torch.optim.SGD])
def test_any_optimizer_takes_the_groups_with_names(make):
    model = nn.Sequential(nn.Embedding(9, 8), AttentionBlock())
    optimizer = make(parameter_groups(model, lr=0.1, weight_decay=0.1))
    assert {name for group in optimizer.param_groups for name in group["param_names"]} == {
        name for name, _ in model.named_parameters()
    }
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    rate = torch.tensor(1.0)
    assert parameter_groups(model, lr=rate)[0]["lr"].item() == 1.0


def test_hidden_matrices_are_those_of_layers_between_embedding_and_head():
    model = nn.ModuleDict({
        "embedding": nn.Embedding(9, 8), "attention": SelfAttention(), "mlp": nn.Linear(8, 8), "norm": CustomNorm(),
        "conv": ShortConv(), "lm_head": nn.Linear(8, 9),
    })  # fmt: skip
    optimizer = FAM(parameter_groups(model), base="muon")
    hidden = {
        name
        for group in optimizer.param_groups
        for name, is_hidden in zip(group["param_names"], group["hidden"], strict=True)
        if is_hidden
    }
    assert hidden == {"attention.qkv.weight", "attention.out.weight", "mlp.weight"}


def test_no_other_optimizer_is_handed_a_setting_of_fam():
    """`alpha` would be RMSprop's smoothing constant; a group holds keys of torch's and one dict for FAM."""
    for group in parameter_groups(nn.Sequential(nn.Embedding(9, 8), AttentionBlock())):
        assert group.keys() == {"params", "name", "lr", "weight_decay", "fam"}
    model = nn.Linear(4, 4)
    optimizer = torch.optim.RMSprop(parameter_groups(model, 0.1), alpha=0.5)
    assert optimizer.param_groups[0]["alpha"] == 0.5


class Conv1D(nn.Module):
    """GPT-2's linear layer, with its weight transposed."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 8)), nn.Parameter(torch.zeros(8))


class StateSpace(nn.Module):
    def __init__(self):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(8, 4))
        self.marked = nn.Parameter(torch.zeros(4, 4))
        self.marked._no_weight_decay = True
        self.told = nn.Parameter(torch.zeros(4, 4))
        self.plain = nn.Parameter(torch.zeros(4, 4))

    def no_weight_decay(self):
        return {"told"}


def test_peoples_own_ways_to_say_that_something_does_not_decay():
    assert routed(StateSpace()) == {
        "A_log": "rest_no_decay", "marked": "rest_no_decay", "told": "rest_no_decay", "plain": "rest",
    }  # fmt: skip
    new, old = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's older form
        nn.utils.weight_norm(old)
    names = routed(nn.ModuleDict({"new": new, "old": old}))
    assert names["new.parametrizations.weight.original0"] == names["old.weight_g"] == "rest_no_decay"
    assert names["new.parametrizations.weight.original1"] == names["old.weight_v"] == "rest"


def test_gpt2s_conv1d_is_linear():
    assert routed(Conv1D()) == {"weight": "rest", "bias": "rest_no_decay"}
    [group, _] = FAM(parameter_groups(Conv1D()), base="muon").param_groups
    assert group["hidden"] == [True]


def test_patterns_change_what_they_match_and_the_first_one_wins():
    model = nn.ModuleDict({"block": AttentionBlock(), "embedding": nn.Embedding(9, 8)})
    patterns = {
        "*.rotary.*": {"lr_factor": 0.1},
        "*.qkv.*": {"weight_decay": 0.5, "base": "adamw"},
        "*.attention.*": {},
    }
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, patterns=patterns)
    of = {name: group for group in groups for name, _ in group["params"]}
    assert sorted(of) == sorted(name for name, _ in model.named_parameters())
    assert of["block.attention.rotary.matrix"]["lr"] == pytest.approx(0.1)
    assert of["block.attention.qkv.weight"]["weight_decay"] == 0.5
    assert of["block.attention.qkv.weight"]["lr"] == 1.0
    assert of["block.attention.out.weight"]["weight_decay"] == pytest.approx(0.1)
    assert len({group["name"] for group in groups}) == len(groups)
    optimizer = FAM(groups, base="muon")
    bases = {name: group["base"] for group in optimizer.param_groups for name in group["param_names"]}
    assert bases["block.attention.qkv.weight"] == "adamw"
    assert bases["block.attention.out.weight"] == "muon"
    with pytest.raises(ValueError, match=r"pattern '\*.rotray.\*' matches no"):
        parameter_groups(model, patterns={"*.rotray.*": {"lr": 1.0}})


def test_layer_decay_lowers_the_rate_layer_by_layer_from_the_top():
    model = nn.ModuleDict({
        "embedding": nn.Embedding(9, 8), "blocks": nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
        "norm": nn.LayerNorm(8), "head": nn.Linear(8, 9),
    })  # fmt: skip
    groups = parameter_groups(model, lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert rates["head.weight"] == rates["norm.weight"] == 1.0
    assert [rates[f"blocks.{i}.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert rates["embedding.weight"] == pytest.approx(0.8 * 0.0625)
    with pytest.raises(ValueError, match="layer_decay 0 must be"):
        parameter_groups(model, layer_decay=0)


def test_bad_input():
    with pytest.raises(ValueError, match="must not be negative, got lr=-1"):
        parameter_groups(nn.Linear(2, 2), lr=-1)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Identity())
