"""The nearest name of the right kind."""

import pytest

from cubelet.cli.suggestions import did_you_mean, kind_of_key, nearest, suggest_component


def test_a_mistyped_option_gets_the_nearest_and_a_strange_one_nothing():
    keys = ["model.dims", "model.heads"]
    assert did_you_mean("unrecognized arguments: --model.dimz=3", keys) == "did you mean model.dims?"
    assert did_you_mean("unrecognized arguments: --zzz", ["model.dims"]) == ""
    assert nearest("FITT", ["fit", "test"]) == "fit"


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        ("Rope", "model.rotary", "cubelet.models.rotary.RoPE"),
        ("RotaryRoPE", "model.embedding_rotary", "cubelet.models.rotary.RoPE"),
        ("cubelet.models.rotary.MultiHeadAtention", "model.attention", "cubelet.models.attention.MultiHeadAttention"),
        ("adamw", "model.optimizer", "torch.optim.AdamW"),
        ("DynamicBas", "callbacks.base", "cubelet.callbacks.DynamicBase"),
        ("lightning.pytorch.loggers.WandbLoger", "trainer.logger", "lightning.pytorch.loggers.WandbLogger"),
        ("EarlyStoping", "trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping"),
        ("ParameterCycler", "model.optimizer", ""),  # of another kind
    ],
)
def test_a_component_is_suggested_of_the_kind_that_the_key_takes(given, key, expected):
    assert suggest_component(given, key) == expected


def test_options_come_from_the_component_that_the_message_names():
    message = "cubelet.models.rotary.QuaternionRotary: Option 'grop' is not accepted"
    assert did_you_mean(message, []) == "did you mean group?"


def test_kinds_follow_the_last_part_of_a_key():
    assert kind_of_key("fit.callbacks.anything") == "callback"
    assert kind_of_key("model.dims") is None


def test_only_a_slot_takes_a_callback_and_not_the_options_of_one():
    assert kind_of_key("callbacks.base") == kind_of_key("trainer.callbacks") == "callback"
    assert kind_of_key("callbacks.base.mode") is kind_of_key("trainer.callbacks.mode") is None
    assert kind_of_key("callbacks.base.init_args.mode") is None
