"""The worst messages of a configuration, each one line with key, value and fix."""

import re

import pytest

# What is given to `cubelet fit`, and what the one line must hold.
SETTINGS = [
    (["--model.dimz=3"], r"--model\.dimz is not an option of model; did you mean --model\.dims\?"),
    (["--model.dim=3"], r"--model\.dim is not an option of model; did you mean --model\.dims\?"),  # no abbreviations
    (["--model.dims=abc"], r"model\.dims: Expected a int\. Got value: abc"),
    (["--model.heads=5"], r"model\.dims=32, model\.heads=5: dims 32 is not divisible by heads 5"),
    (["--model.dropout=2"], r"model\.dropout=2\.0: .* between 0 and 1.*the default is 0\.0"),
    (["--dims=3"], r"--dims is not an option; did you mean --model\.dims\?"),
    (["--trainer.max_step=3"], r"--trainer\.max_step is not .*; did you mean --trainer\.max_steps\?"),
    (["--model.rotary=Rope"], r"--model\.rotary=Rope is no class path; did you mean cubelet\.models\.rotary\.RoPE\?"),
    (["--model.rotary=x.Rope"], r"model\.rotary: .*x\.Rope\); did you mean cubelet\.models\.rotary\.RoPE\?"),
    (
        ["--model.rotary=cubelet.models.attention.MultiHeadAttention"],
        r"model\.rotary=\S+MultiHeadAttention is a class of kind attention, not rotary; choose one of .*RoPE",
    ),
    (
        ["--model.block=[cubelet.models.blocks.ResidualBlock, cubelet.models.attention.MultiHeadAttention]"],
        r"model\.block=\S+MultiHeadAttention is a class of kind attention, not block; choose one of .*ResidualBlock",
    ),
    (
        ["--model.rotary=cubelet.models.rotary.CombinedRotary", "--model.rotary.rotatins=3"],
        r"Option 'rotatins' is not accepted; did you mean rotations\?",
    ),
    (["--callbacks.base=cubelet.callbacks.DynamicBas"], r"did you mean cubelet\.callbacks\.DynamicBase\?"),
    (["--model.optimizer.lr=-1"], r"model\.optimizer\.lr=-1\.0: "),
    (["--data.batch_size=0"], r"data\.batch_size=0: .*at least 1"),
    (["--data_class=cubelet.datamodules.Txt"], r"data_class=cubelet\.datamodules\.Txt cannot be imported"),
    (["--data_class=cubelet.models.decoder.Decoder"], r"is not a LightningDataModule; leave it out"),
    (["--trainer.val_check_interval=0"], r"trainer\.val_check_interval=0 never validates; give .* 500"),
    (["--trainer.accumulate_grad_batches=0"], r"trainer\.accumulate_grad_batches=0 must be at least 1"),
    (["--trainer.devices=0"], r"trainer\.devices=0 trains nowhere; give 1"),
    (["--trainer.strategy=fsdp3"], r"trainer\.strategy=fsdp3 is unknown; did you mean fsdp\?.*strategy/fsdp2"),
    (["--trainer.accelerator=tpu"], r"trainer\.accelerator=tpu is not here; this machine has .*=auto"),
    (["--trainer.accelerator=gpuu"], r"trainer\.accelerator=gpuu is unknown; did you mean gpu\?"),
    (["--trainer.precision=17"], r"trainer\.precision: Expected .*\(got 17\)"),
    (["--trainer.logger=lightning.pytorch.loggers.CometLogger"], r"trainer\.logger=\S+CometLogger.*install"),
    (["--trainer.logger=lightning.pytorch.loggers.WandbLoger"], r"did you mean lightning\.\S+WandbLogger\?"),
    (["--trainer.fast_dev_run=1", "--trainer.gradient_clip_algorithm=foo"], r"trainer\.gradient_clip_algorithm=foo: "),
    (["--config=rotary/quaternon"], r"no file rotary/quaternon.*did you mean rotary/quaternion"),
    (["--config=nothing/like/it.yaml"], r"no file nothing/like/it\.yaml.*cubelet list configs"),
    (["--data.corpus=nofile.txt"], r"corpus: there is no file or folder"),
    (
        ["--data.corpus=/dev/null"],
        r"^(error: )?corpus: /dev/null is a pipe, socket or device; write its text to a file",
    ),
    (["--ckpt_path=nothere.ckpt"], r"'nothere\.ckpt' does not exist"),
    (["--ckpt_path=last"], r"no checkpoint under .*start a run"),
]


@pytest.mark.parametrize(("arguments", "expected"), SETTINGS, ids=[" ".join(a) for a, _ in SETTINGS])
def test_a_faulty_setting_is_one_line_with_key_value_and_fix(arguments, expected, refused, small, tmp_path):
    message = refused("fit", *small, *arguments)
    assert re.search(expected, message), message
    # An optimizer is only built when the run has its folder.
    assert "optimizer" in arguments[0] or not (tmp_path / "runs").exists()


FILES = {
    "tab": ("model:\n\tdims: 64\n", r"bad\.yaml, line 2: a tab, .*: dims: 64"),
    "merge markers": ("model:\n<<<<<<< HEAD\n  dims: 64\n=======\n  dims: 32\n", r"bad\.yaml, line 2: a merge .*HEAD"),
    "list": ("- model\n- data\n", r"bad\.yaml holds a list, where keys"),
    "empty": ("# nothing\n", r"bad\.yaml is empty"),
    "word": ("model\n", r"bad\.yaml holds only the value 'model'"),
    "unclosed": ("model:\n  rotary: [1, 2\n", r"bad\.yaml, line 2: .*: rotary: \[1, 2"),
    "two colons": ("model: dims: 3\n", r"bad\.yaml, line 1: a second `:` .*: model: dims: 3"),
    "indentation": ("model:\n  dims: 3\n heads: 4\n", r"bad\.yaml, line 3: indentation .*: heads: 4"),
    "typo": ("model:\n  layers: 2\n  dimz: 64\n", r"line 3: model\.dimz is not .*; did you mean model\.dims\?"),
    "typo at the top": ("modle:\n  dims: 64\n", r"line 1: modle is not an option; did you mean model\?"),
    "typo in a list": (
        "model:\n  block:\n  - class_path: cubelet.models.blocks.ShortConvBlock\n    init_args: {tabs: 3}\n",
        r"line 2: model\.block\.init_args\.tabs is not an option of ShortConvBlock; did you mean taps\?",
    ),
    "typo below": (
        "model:\n  rotary:\n    class_path: cubelet.models.rotary.CombinedRotary\n    init_args: {rotatins: 3}\n",
        r"line 2: model\.rotary\.init_args\.rotatins is not an option of CombinedRotary; did you mean rotations\?",
    ),
    "bare name": ("model:\n  rotary: Rope\n", r"line 2: model\.rotary=Rope is no .*cubelet\.models\.rotary\.RoPE"),
    "slot": ("callbacks:\n  bas: null\n", r"line 2: callbacks\.bas is not .*; did you mean callbacks\.base\?"),
    "twice": ("model:\n  dims: 64\n  heads: 4\n  dims: 32\n", r"line 4: key 'dims' stands twice \(first in line 2\)"),
    "twice at the top": ("model: {dims: 64}\ntrainer: {}\nmodel: {heads: 2}\n", r"line 3: key 'model' stands twice"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_faulty_file_is_one_line_with_file_line_and_text(name, refused, tmp_path):
    text, expected = FILES[name]
    (tmp_path / "bad.yaml").write_text(text)
    message = refused("fit", f"--config={tmp_path / 'bad.yaml'}")
    assert re.search(expected, message), message


def test_files_that_cannot_be_read_are_one_line(refused, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"trainer\xff")
    assert re.search(r"bad.yaml is not UTF-8 text: byte 7", refused("fit", f"--config={tmp_path / 'bad.yaml'}"))
    (tmp_path / "device.yaml").symlink_to("/proc/self/mem")
    assert "device.yaml cannot be read: Input/output error" in refused("fit", "-c", str(tmp_path / "device.yaml"))


def test_a_mistyped_command_is_one_line(refused):
    assert refused("fitt") == "error: there is no command 'fitt'; did you mean fit?"
    assert "cubelet --help" in refused("xyzzy")


def test_duplicate_keys_are_refused_in_experiment_files_too(refused, tmp_path):
    (tmp_path / "twice.yaml").write_text("title: a\nbase: text\ntitle: b\n")
    assert "line 3: key 'title' stands twice" in refused("compare", str(tmp_path / "twice.yaml"))
