"""Three ways to start a run, and what each says and writes."""

import re
import shutil

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar

from cubelet.cli.lightning_cli import compose
from cubelet.cli.main import main
from cubelet.cli.run import LOCK, RUN_VARIABLE
from cubelet.cli.run_start import flatten, load_weights, parse_override, yielding
from cubelet.common.errors import ConfigError, UnreadableFileError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(RUN_VARIABLE, "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """Arguments of a run of 4 steps called "first", which others copy, and its root."""
    root = tmp_path_factory.mktemp("trained")
    arguments = [
        f"--data.corpus={corpus}", f"--data.cache_dir={root / 'cache'}", "--data.context_length=16",
        "--data.batch_size=4", "--model.dims=16", "--model.layers=1", "--model.heads=2", "--trainer.max_steps=4",
        "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", "--callbacks.samples=null", "--callbacks.rotation=null",
    ]  # fmt: skip
    main(["fit", "--config=text", *arguments, f"--trainer.default_root_dir={root / 'runs'}", "--run_name=first"])
    return root / "runs", arguments


@pytest.fixture
def fit(trained, tmp_path):
    """fit("--ckpt_path=…", …) under tmp_path/runs."""

    def run(*arguments):
        main(["fit", "--config=text", *trained[1], f"--trainer.default_root_dir={tmp_path / 'runs'}", *arguments])

    return run


def read(path):
    return torch.load(path, weights_only=True)


def test_the_configuration_repeats_the_run_and_not_the_way_it_was_resumed(trained, fit, tmp_path, monkeypatch):
    root, _ = trained
    shutil.copytree(root / "first", tmp_path / "runs/moved")
    folder = tmp_path / "runs" / "moved"
    best = read(folder / "checkpoints/best.ckpt")
    # From another working directory, by the folder of a run that was renamed.
    monkeypatch.chdir(tmp_path)
    fit(f"--ckpt_path={folder}", "--trainer.max_steps=6", "--model.penalty_weight=7.0")
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {"moved"}
    assert not (folder / LOCK).exists()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["ckpt_path"] is config["run_name"] is config["init_from"] is None
    assert config["trainer"]["max_steps"] == 6
    last = read(folder / "checkpoints/last.ckpt")
    assert last["global_step"] == 6
    # The best score of the run came along: it was compared with, not forgotten.
    (state,) = [state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint")]
    (before,) = [state for key, state in best["callbacks"].items() if key.startswith("ModelCheckpoint")]
    assert float(state["best_model_score"]) <= float(before["best_model_score"])
    assert state["best_model_path"] == str(folder / "checkpoints/best.ckpt")


def test_a_renamed_run_keeps_its_best_weights_where_it_gets_worse(trained, fit, tmp_path):
    root, _ = trained
    folder = tmp_path / "runs" / "renamed"
    shutil.copytree(root / "first", folder)
    before = read(folder / "checkpoints/best.ckpt")
    fit(
        "--ckpt_path=renamed", "--trainer.max_steps=6", "--callbacks.guard=null",
        "--override=[\"model.optimizer.init_args.lr=30.0\"]",
    )  # fmt: skip
    after = read(folder / "checkpoints/best.ckpt")
    assert after["global_step"] == before["global_step"]
    assert float(read(folder / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"][0]["initial_lr"]) > 20


def test_overrides_win_over_the_checkpoint_and_differences_are_told_by_key(trained, fit, tmp_path, caplog, recwarn):
    root, _ = trained
    path = root / "first/checkpoints/last.ckpt"
    fit(
        f"--ckpt_path={path}", "--run_name=second", "--trainer.max_steps=6", "--model.dims=32", "--model.layers=3",
        "--override=[\"model.optimizer.init_args.lr=0.001\", \"model.scheduler.init_args.shape=cosine\"]",
    )  # fmt: skip
    told = [str(warning.message) for warning in recwarn if "checkpoint's is used" in str(warning.message)]
    assert any(text.startswith("model.dims: 32 → 16 ") for text in told)
    assert any(text.startswith("model.layers: 3 → 1 ") for text in told)
    rate = read(path)["hyper_parameters"]["optimizer"]["init_args"]["lr"]
    assert f"model.optimizer.init_args.lr: {rate} → 0.001" in caplog.text
    saved = read(tmp_path / "runs/second/checkpoints/last.ckpt")
    assert saved["global_step"] == 6
    old = read(path)["optimizer_states"][0]["param_groups"]
    new = saved["optimizer_states"][0]["param_groups"]
    assert [g["initial_lr"] for g in new] == pytest.approx([g["initial_lr"] * 0.001 / rate for g in old])
    assert saved["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.001


def test_a_new_run_from_weights_alone_lists_what_does_not_fit(trained, fit, tmp_path, caplog):
    root, _ = trained
    path = root / "first/checkpoints/last.ckpt"
    fit(
        f"--init_from={path}",
        "--run_name=wider",
        "--trainer.max_steps=1",
        "--model.layers=2",
        "--model.optimizer.init_args.lr=0.0",
    )
    (line,) = [line for line in caplog.messages if f"tensors are from {path}" in line]
    assert "drawn anew: decoder.blocks.1." in line
    assert "of another shape" not in line
    saved, source = read(tmp_path / "runs/wider/checkpoints/last.ckpt"), read(path)
    assert saved["global_step"] == 1
    name = "decoder.embedding.weight"
    assert torch.equal(saved["state_dict"][name], source["state_dict"][name])


@pytest.mark.parametrize(
    ("command", "shown", "more"),
    [
        ("validate", r"val_loss", []),
        ("test", r"test_loss .*\d\.\d", []),
        ("predict", r"^the .", ['--prompts=["the "]', "--generation.max_new_tokens=4"]),
    ],
)
def test_a_checkpoint_alone_is_enough(command, shown, more, trained, capsys, tmp_path, monkeypatch):
    root, _ = trained
    monkeypatch.chdir(tmp_path)
    main([command, f"--ckpt_path={root / 'first/checkpoints/best.ckpt'}", *more])
    assert re.search(shown, capsys.readouterr().out, re.M)
    assert list(tmp_path.iterdir()) == []


def test_switches_of_the_trainer_make_standing_callbacks_yield(fit, tmp_path):
    fit("--trainer.logger=false", "--run_name=quiet", "--trainer.max_steps=2")
    assert {p.name for p in (tmp_path / "runs/quiet/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    fit("--trainer.logger=[]", "--trainer.enable_checkpointing=false", "--run_name=bare", "--trainer.max_steps=2")
    assert not list((tmp_path / "runs/bare").rglob("*.ckpt"))
    fit("--trainer.barebones=true", "--trainer.max_steps=2")
    fit(
        "--trainer.val_check_interval=0.5",
        "--run_name=share",
        "--trainer.max_steps=2",
        "--trainer.limit_train_batches=2",
    )
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {"quiet", "bare", "share"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run_name=../x"], "is no plain folder name"),
        (["--trainer.default_root_dir=memory://x"], "is no local folder"),
        (["--init_from=a.ckpt", "--ckpt_path=b.ckpt"], "give one of them"),
        (["--override=[\"model.dropout=0.1\"]"], "override is for a resumed run"),
        (["--ckpt_path=best"], "no checkpoint under .* for `best`"),
        (["--ckpt_path={first}", "--trainer.precision=64-true"], "64-true holds float64 weights .* holds float32"),
        (["--ckpt_path={first}", "--override=[\"model.dropout\"]"], "is not KEY=VALUE"),
        (["--ckpt_path={first}", "--override=[\"modle.dropout=1\"]"], "no option modle.dropout"),
    ],
)  # fmt: skip
def test_starts_that_cannot_be_are_one_line(arguments, words, fit, trained, tmp_path, capsys):
    first = trained[0] / "first"
    with pytest.raises(SystemExit) as end:
        fit(*(text.format(first=first) for text in arguments))
    assert end.value.code == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists() or not [p for p in (tmp_path / "runs").iterdir() if p.is_dir()]


def test_weights_that_fit_nowhere_are_refused(tmp_path):
    torch.save({"state_dict": {"other": torch.zeros(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(UnreadableFileError, match=r"no weight of .* fits this model: its first is other"):
        load_weights(torch.nn.Linear(2, 2), str(tmp_path / "x.ckpt"))


def test_small_parts():
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        parse_override("a.b")
    assert flatten({"a": {"b": 1, "c": None}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_only_standing_callbacks_that_conflict_yield():
    off = {"barebones": False, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
    kinds = [LearningRateMonitor("step"), ModelCheckpoint(), RichProgressBar()]
    for switch, value, left in (
        ("logger", False, [1, 2]), ("enable_checkpointing", False, [0, 2]), ("enable_progress_bar", False, [0, 1]),
        ("barebones", True, []), ("logger", True, [0, 1, 2]),
    ):  # fmt: skip
        assert yielding(kinds, Namespace(**(off | {switch: value}))) == [kinds[i] for i in left], switch


def test_options_come_from_the_environment_as_in_lightning_below_files_and_arguments(monkeypatch):
    for name, value in {"TRAINER__MAX_STEPS": "17", "MODEL__DROPOUT": "0.3", "DATA__BATCH_SIZE": "5"}.items():
        monkeypatch.setenv(f"PL_FIT__{name}", value)
    config = compose(["--config=text", "--data.batch_size=6"])
    assert (config.model.dropout, config.trainer.max_steps, config.data.batch_size) == (0.3, 2000, 6)
