"""`cubelet new`: what it writes trains, passes its own test and composes; nothing is overwritten."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cubelet.cli.comparison import compose
from cubelet.cli.main import main
from cubelet.cli.new import module_name
from cubelet.cli.new_templates import TEMPLATES
from cubelet.common.shipped_files import PACKAGE
from cubelet.compare.experiment import load_experiment
from cubelet.compare.runs import RunBuilder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_kind_trains_and_its_experiment_composes(kind, folder, small, capsys):
    name = f"Own{kind.capitalize()}"
    main(["new", kind, name])
    module = module_name(name)
    shown = capsys.readouterr().out
    assert f"pytest test_{module}.py" in shown
    assert f"cubelet compare {module}_experiment.yaml" in shown
    assert {p.name for p in folder.iterdir()} == {
        f"{module}.py",
        f"test_{module}.py",
        f"{module}.yaml",
        f"{module}_experiment.yaml",
    }
    assert not re.search("MyIdea|my_idea|KIND", "".join(p.read_text() for p in folder.iterdir()))
    drop = ("--data.corpus", "--data.cache_dir", "--callbacks.samples") if kind == "data" else ()
    options = [a for a in small if not a.startswith(drop or ("?",))]
    main(["fit", f"--config={module}.yaml", *options, "--callbacks.measure=cubelet.callbacks.RunMetrics"])
    assert list((folder / "runs").glob("*/checkpoints/last.ckpt"))
    (measures,) = (folder / "runs").glob("*/measures.json")  # what a comparison reads of a run
    assert json.loads(measures.read_text())["steps"] == 4
    builder = RunBuilder(load_experiment(folder / f"{module}_experiment.yaml"), compose)
    assert builder.faults == {}
    assert len(builder.variants) >= 4  # the two, the baseline again, and no positions


@pytest.mark.slow
def test_the_written_tests_pass(folder):
    for kind in TEMPLATES:
        main(["new", kind, f"Its{kind.capitalize()}"])
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d\d passed", done.stdout)


def test_existing_files_are_left_alone(folder, refused):
    main(["new", "rotary", "Mine", "--folder", "here"])
    before = {p: p.read_text() for p in Path("here").iterdir()}
    message = refused("new", "block", "Mine", "--folder=here")
    assert "here/mine.py" in message
    assert "is left alone" in message
    assert {p: p.read_text() for p in Path("here").iterdir()} == before


def test_what_the_commands_need_and_is_not_installed_is_said_first(folder, monkeypatch, capsys):
    main(["new", "rotary", "Mine"])
    assert "pip install" not in capsys.readouterr().out
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("pytest", "scipy") else find(name))
    main(["new", "rotary", "Other"])
    shown = capsys.readouterr().out
    assert shown.index("first       pip install pytest 'cubelet[compare]'\n") < shown.index("test it ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rotery", "Mine"], "did you mean rotary?"),
        (["rotary", "mine"], "no name of a class; give one such as MyIdea"),
        (["rotary", "My-Idea"], "no name of a class"),
        (["rotary", "Random"], "would hide the module random"),
        (["rotary"], "takes a kind and a name"),
    ],
)
def test_what_cannot_be_made_is_one_line(arguments, words, refused, folder):
    assert words in refused("new", *arguments)
    assert not list(folder.iterdir())
