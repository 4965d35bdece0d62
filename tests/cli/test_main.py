"""The command line, as a user types it: fit, resume, validate, predict, generate, fragments, and wrong inputs."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cubelet.cli.main import forward, main
from cubelet.lightning_modules import LanguageModel

FRAGMENTS = sorted(
    str(p) for p in Path("configs").rglob("*.yaml") if p.parent.name not in ("configs", "strategy") or p.stem == "plain"
)


def folder_of(tmp_path):
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    return folder


def shown(name, capsys):
    """The value of a metric in the table that the Trainer printed."""
    return float(re.search(rf"{name} .*?([0-9]+\.[0-9]+)", capsys.readouterr().out)[1])


@pytest.mark.slow
def test_fit_writes_one_folder_with_everything(cubelet, tmp_path, capsys):
    cubelet("fit")
    folder = folder_of(tmp_path)
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "samples.txt", "checkpoints"} <= names
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    steps = [int(r["step"]) for r in rows if r["train_loss"]]
    assert steps == [0, 1, 2, 3]
    assert [int(r["step"]) for r in rows if r["val_loss"]] == [1, 3]
    events = EventAccumulator(str(folder)).Reload()
    assert {"train_loss", "val_loss", "val_bpc", "tokens_per_second"} <= set(events.Tags()["scalars"])
    assert any("samples" in tag for tag in events.Tags()["tensors"])
    shown = capsys.readouterr().out
    for piece in ("validation loss", "bits per character", "best checkpoint", "cubelet fit --config", "tensorboard"):
        assert piece in shown


@pytest.mark.slow
def test_a_trial_run_validates_at_its_end(cubelet, tmp_path, capsys):
    cubelet("fit", "--trainer.val_check_interval=500", "--trainer.max_steps=3")
    assert "(whole split, step 3)" in capsys.readouterr().out
    assert (folder_of(tmp_path) / "checkpoints/best.ckpt").exists()


@pytest.mark.slow
def test_the_saved_configuration_repeats_the_run(cubelet, tmp_path):
    cubelet("fit")
    first = folder_of(tmp_path)
    main(["fit", f"--config={first / 'config.yaml'}", "--run_name=again"])
    files = [folder / "checkpoints/last.ckpt" for folder in (first, first.parent / "again")]
    one, two = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_resume_goes_on_in_the_same_folder_and_repeats_no_row(cubelet, tmp_path):
    cubelet("fit")
    folder = folder_of(tmp_path)
    cubelet("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert folder_of(tmp_path) == folder
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows if r["train_loss"]] == [0, 1, 2, 3, 4, 5]
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_checkpoint_needs_nothing_but_its_path(cubelet, tmp_path, capsys):
    cubelet("fit")
    path = folder_of(tmp_path) / "checkpoints/last.ckpt"
    model = LanguageModel.load_from_checkpoint(path, weights_only=True)
    text = model.sample_text("the q", 20, seed=1)
    assert text.startswith("the q")
    assert len(text) == 25
    capsys.readouterr()
    main(["generate", f"--ckpt_path={path}", "--prompt=the q", "--max_new_tokens=20", "--seed=1"])
    assert capsys.readouterr().out == text + "\n"
    asked = ('--prompts=["the q"]', "--generation.max_new_tokens=20", "--generation.seed=1")
    cubelet("predict", f"--ckpt_path={path}", *asked)
    assert text in capsys.readouterr().out
    cubelet("validate", f"--ckpt_path={path}")
    rows = list(csv.DictReader((path.parent.parent / "metrics.csv").open()))
    final = [float(r["val_loss"]) for r in rows if r["val_loss"]][-1]
    assert shown("val_loss", capsys) == pytest.approx(final, abs=1e-5)
    cubelet("test", f"--ckpt_path={path}")
    assert shown("test_loss", capsys) == pytest.approx(final, abs=1e-5)


def names(value):
    """Components by their class paths, in lists too; other values as they are."""
    if isinstance(value, list):
        return [names(item) for item in value]
    return value["class_path"] if isinstance(value, dict) and "class_path" in value else value


@pytest.mark.slow
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_trains(fragment, cubelet, tmp_path):
    cubelet("fit", f"--config={fragment}", "--trainer.max_steps=2")
    saved = yaml.safe_load((folder_of(tmp_path) / "config.yaml").read_text())
    wanted = yaml.safe_load(Path(fragment).read_text())
    for section, values in wanted.items():
        for key, value in values.items():
            assert names(saved[section][key]) == names(value), f"{section}.{key} was not taken"
    if saved["callbacks"]["samples"]:
        assert (folder_of(tmp_path) / "samples.txt").read_text().strip()  # it generates, cached


@pytest.mark.slow
@pytest.mark.parametrize("task", ["parity", "addition"])
def test_the_recipe_for_any_length_trains_and_measures(task, tmp_path, monkeypatch):
    """With the separators of both kinds of tasks, and the third layer that sums need, as the file says."""
    monkeypatch.chdir(tmp_path)
    more = ["--model.restart_tokens={10: -1, 256: 0}", "--model.layers=3"] if task == "addition" else []
    more += ["--model.rotary=[null, cubelet.models.rotary.RoPE, null]"] if task == "addition" else []
    few = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    main(["fit", "--config=synthetic", "--config=any_length", f"--data.task={task}", *more, *few])
    measures = json.loads((folder_of(tmp_path) / "measures.json").read_text())
    assert list(measures["exact"]) == ["64", "128", "256", "512"]
    main(["fit", f"--config={folder_of(tmp_path) / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_steps=3"])
    model = LanguageModel.load_from_checkpoint(folder_of(tmp_path) / "checkpoints/last.ckpt")
    assert model.decoder.restart_tokens == ({10: 0, 256: 1} if task == "addition" else {256: 0})


@pytest.mark.slow
def test_the_models_arguments_in_a_checkpoint_win_and_say_so(cubelet, tmp_path):
    cubelet("fit")
    with pytest.warns(UserWarning, match=r"model\.dropout: 0\.3 → 0\.0 \(the checkpoint's is used"):
        cubelet("fit", "--ckpt_path=last", "--trainer.max_steps=5", "--model.dropout=0.3")


@pytest.mark.slow
def test_two_processes_end_with_equal_replicas(cubelet, small, tmp_path):
    """All three callbacks, DDP without buffer broadcasts: a missing reduction cannot hide."""
    script = tmp_path / "ddp.py"
    script.write_text(
        "import sys, torch, lightning as L\n"
        "from cubelet.cli.main import main\n"
        "class Dump(L.Callback):\n"
        "    def on_fit_end(self, trainer, module):\n"
        f"        torch.save(module.state_dict(), r'{tmp_path}/rank%d.pt' % trainer.global_rank)\n"
        "import __main__; __main__.Dump = Dump\n"
        "main(sys.argv[1:])\n"
    )
    arguments = [
        "--config=configs/text.yaml",
        "--config=configs/optimizer/fam_adamw.yaml",
        *small,
        "--trainer.devices=2",
        "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.broadcast_buffers=False",
        "--trainer.max_steps=12",
        "--callbacks.base.every_n_steps=2",
        "--callbacks.fam.every_n_steps=4",
        "--model.optimizer.start_step=2",
        "--model.optimizer.analyse_every=2",
        "--trainer.callbacks+=__main__.Dump",
    ]
    done = subprocess.run([sys.executable, str(script), "fit", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    bases = [v for k, v in one.items() if k.endswith("rotary.base")]
    assert len(bases) == 2
    assert all(b != 10_000 for b in bases)  # the callback did act
    dumps = [json.loads(line) for line in (folder_of(tmp_path) / "fam.jsonl").read_text().splitlines()]
    assert {d["step"] for d in dumps} == {4, 8, 12}


@pytest.mark.slow
def test_checkpoints_of_other_data_or_models_are_refused(cubelet, refused, small, tmp_path):
    cubelet("fit", "--run_name=first")
    given = ["fit", "--config=configs/text.yaml", *small]
    path = f"--ckpt_path={tmp_path / 'runs/first/checkpoints/last.ckpt'}"
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs/first").rglob("*.ckpt"))
    other = tmp_path / "other.txt"
    other.write_text("0123456789 THE QUICK\n" * 300)
    assert re.search("the (checkpoint's|data's) vocabulary", refused(*given, path, f"--data.corpus={other}"))
    longer = tmp_path / "longer.txt"
    longer.write_text("the quick brown fox jumps over the lazy dog and runs away from every noisy cat\n" * 70)
    assert "the checkpoint was trained on another text" in refused(*given, path, f"--data.corpus={longer}")
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes((tmp_path / "runs/first/checkpoints/last.ckpt").read_bytes()[:5000])
    assert "not a readable checkpoint" in refused(*given, f"--ckpt_path={truncated}")
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "runs/first").rglob("*.ckpt")) == before


def test_prompts_outside_the_vocabulary_are_told(cubelet, refused, tmp_path):
    cubelet("fit", "--trainer.max_steps=1", "--trainer.val_check_interval=1")
    assert "unknown characters: 'É'" in refused("generate", "--prompt=É", f"--root={tmp_path / 'runs'}")
    assert "the prompt is empty" in refused("generate", "--prompt=", f"--root={tmp_path / 'runs'}")


def test_foreign_subcommands_go_to_lightning_sdk_only_where_it_is(monkeypatch):
    assert forward("login") is False
    called = []

    class Entry:
        group, name = "console_scripts", "lightning"

        def load(self):
            return lambda: called.append(True)

    class Distribution:
        entry_points = [Entry()]

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    assert forward("login") is True
    assert called == [True]
