"""Completion as bash does it, and the schema against the shipped configurations."""

import json
import shutil
import subprocess

import pytest

from cubelet.cli.completion import bash_script, schema
from cubelet.cli.main import main
from cubelet.common.shipped_files import PACKAGE
from cubelet.common.strict_yaml import load_yaml_file


def complete(*words):
    """What bash offers for the last of `words`."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"{bash_script()}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _cubelet; echo ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_options_and_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complete("cubelet", "do") == ["doctor"]
    assert complete("cubelet", "fit", "--model.dim") == ["--model.dims="]
    assert complete("cubelet", "fit", "--config", "rotary/quat") == ["rotary/quaternion", "rotary/quaternion_4d"]
    assert complete("cubelet", "fit", "--config", "=", "pla") == ["plain"]
    assert complete("cubelet", "compare", "rot") == ["rotary"]
    assert complete("cubelet", "new", "at") == ["attention"]
    assert complete("cubelet", "list", "opt") == ["optimizer"]


def test_the_schema_knows_every_key_of_the_shipped_configurations(capsys):
    main(["completion", "schema"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema()
    top = printed["properties"]
    for path in sorted(PACKAGE.glob("configs/**/*.yaml")):
        content = load_yaml_file(path)
        assert content.keys() <= top.keys(), path
        for section in ("trainer", "callbacks"):
            assert (content.get(section) or {}).keys() <= top[section]["properties"].keys(), path
    assert top["model"]["properties"]["dims"]["description"].startswith("model width")
    assert "cubelet.models.rotary.RoPE" in top["model"]["properties"]["rotary"]["anyOf"][1]["examples"]


def test_an_unknown_kind_is_one_line(refused):
    assert "did you mean zsh?" in refused("completion", "zsch")
