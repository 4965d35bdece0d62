"""Components as plain data: what is described comes back the same; what cannot be named is asked for."""

import json
from functools import partial

import pytest
import torch

from cubelet.lightning_modules.component_config import from_config, to_config
from cubelet.models.rotary import CombinedRotary, RoPE


@pytest.mark.parametrize("value", [3, 0.5, "x", None, True, [1, [2, "a"]], {"a": {"b": [1]}}, {10: -1}])
def test_plain_data_is_itself(value):
    assert to_config(value) == value
    assert from_config(to_config(value)) == value


def test_classes_and_partials_come_back():
    assert from_config(to_config(RoPE)) is RoPE
    again = from_config(to_config(partial(CombinedRotary, base=500.0, pairs="adjacent")))
    assert again.func is CombinedRotary
    assert again.keywords == {"base": 500.0, "pairs": "adjacent"}


def test_nested_components_come_back():
    from cubelet.models.attention import MultiHeadAttention
    from cubelet.models.blocks import ResidualBlock

    spec = to_config(partial(ResidualBlock, attention=partial(MultiHeadAttention, dropout=0.1)))
    assert json.loads(json.dumps(spec)) == spec
    again = from_config(spec)
    assert again.func is ResidualBlock
    assert again.keywords["attention"].func is MultiHeadAttention
    assert again.keywords["attention"].keywords == {"dropout": 0.1}


def test_partials_of_partials_merge():
    inner = partial(CombinedRotary, base=500.0, pairs="adjacent")
    assert from_config(to_config(partial(inner, base=7.0))).keywords == {"base": 7.0, "pairs": "adjacent"}


def test_a_lambda_is_stored_by_name_and_asked_for():
    spec = to_config({"rotary": lambda dims, heads: RoPE(dims, heads)})
    with pytest.raises(ImportError, match="pass it again by keyword"):
        from_config(spec["rotary"])


def test_what_cannot_be_plain_is_refused():
    with pytest.raises(TypeError, match="cannot be stored"):
        to_config(torch.zeros(2))
    with pytest.raises(TypeError, match="positional"):
        to_config(partial(RoPE, 32))


def test_a_scaling_is_stored_by_its_fields_and_comes_back_as_an_object():
    import functools

    from cubelet.models.rotary import ProportionalScaling, RoPE

    stored = to_config(functools.partial(RoPE, scaling=ProportionalScaling(proportion=0.5)))
    assert stored["init_args"]["scaling"]["init_args"]["proportion"] == 0.5
    rope = from_config(stored)(8, 2)
    assert rope.scaling == ProportionalScaling(proportion=0.5)
