"""What the parser gets: full paths, the base of a fragment, the configuration of a checkpoint's run."""

import pytest
import torch

from cubelet.cli.arguments import prepare_arguments, takes_runs_config, with_run
from cubelet.cli.config_files import config_values, is_inline, last_value
from cubelet.common.errors import MissingFileError
from cubelet.common.shipped_files import PACKAGE

TEXT = f"--config={PACKAGE / 'configs/text.yaml'}"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs/one"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "global_step": 3}, folder / "checkpoints/last.ckpt")
    (folder / "config.yaml").write_text("trainer: {max_steps: 3}\nmodel: {dims: 8}\ndata: {batch_size: 2}\n")
    return folder


def test_nothing_and_a_fragment_alone_are_laid_over_the_default_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_arguments("fit", [])[0] == [TEXT]
    fragment = PACKAGE / "configs/rotary/quaternion.yaml"
    assert prepare_arguments("fit", ["--config=rotary/quaternion"])[0] == [TEXT, f"--config={fragment}"]
    assert prepare_arguments("fit", ["-c", "plain", "--model.rotary=RoPE"])[0] == [
        TEXT,
        "-c",
        str(PACKAGE / "configs/plain.yaml"),
        "--model.rotary=cubelet.models.rotary.RoPE",
    ]


def test_a_complete_configuration_stands_alone():
    synthetic = f"--config={PACKAGE / 'configs/synthetic.yaml'}"
    assert prepare_arguments("fit", ["--config=synthetic"])[0] == [synthetic]


def test_a_checkpoint_brings_its_runs_configuration(run, tmp_path):
    root = f"--trainer.default_root_dir={tmp_path / 'runs'}"
    checkpoint = run / "checkpoints/last.ckpt"
    expected = [f"--config={run / 'config.yaml'}", root, f"--ckpt_path={checkpoint}"]
    assert with_run("test", [root]) == expected
    assert takes_runs_config("test", [root])
    assert with_run("fit", [root]) == [root]
    assert with_run("fit", [root, "--ckpt_path", "last"]) == [expected[0], root, "--ckpt_path", "last", expected[-1]]
    # A configuration that was named is the user's choice.
    assert with_run("validate", [TEXT, root]) == [TEXT, root, f"--ckpt_path={checkpoint}"]
    assert not takes_runs_config("validate", [TEXT])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_without_a_checkpoint_nothing_untrained_is_evaluated(command, refused, tmp_path):
    root = f"--trainer.default_root_dir={tmp_path / 'none'}"
    with pytest.raises(MissingFileError, match=r"no checkpoint under .*none.* for `last`"):
        with_run(command, [root])
    assert "start a run without --ckpt_path first" in refused(command, root).replace("; ", " ")


def test_values_are_found_in_both_spellings():
    assert list(config_values(["--config=a", "-c", "b", "--config", "c", "--configx=d"])) == [
        (0, "a"),
        (2, "b"),
        (4, "c"),
    ]
    assert last_value("ckpt_path", ["--ckpt_path", "x", "--ckpt_path=y"], [("f", {"ckpt_path": "z"})]) == "y"
    assert last_value("data_class", [], [("f", {"data_class": "z"}), ("g", {})]) == "z"
    assert is_inline("model: {dims: 3}")
    assert not is_inline("configs/text.yaml")
