"""Completion as bash does it, and the schema against the shipped configurations."""

import json
import os
import pty
import select
import shutil
import subprocess
import time

import pytest
import yaml

from cubelet.cli.completion import bash_script, fish_script, schema
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


def complete_in_fish(tmp_path, line):
    """What fish offers for a line."""
    path = tmp_path / "cubelet.fish"
    path.write_text(fish_script())
    command = ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here (apt-get install fish)")
def test_fish_completes_commands_options_and_configurations(tmp_path):
    assert complete_in_fish(tmp_path, "cubelet do") == ["doctor"]
    assert complete_in_fish(tmp_path, "cubelet fit --model.dim") == ["--model.dims="]
    assert complete_in_fish(tmp_path, "cubelet fit --config rotary/quat") == [
        "rotary/quaternion",
        "rotary/quaternion_4d",
    ]
    assert complete_in_fish(tmp_path, "cubelet compare rot") == ["rotary"]
    assert complete_in_fish(tmp_path, "cubelet new at") == ["attention"]
    assert complete_in_fish(tmp_path, "cubelet list opt") == ["optimizer"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here (apt-get install zsh)")
def test_zsh_completes_at_the_tab_key(tmp_path, capsys):
    main(["completion", "zsh"])
    (tmp_path / ".zshrc").write_text("PS1='ready> '\n" + capsys.readouterr().out)
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i"], os.environ | {"ZDOTDIR": str(tmp_path), "TERM": "xterm"})

    def answer(keys, awaited):
        os.write(descriptor, keys)
        output, end = b"", time.monotonic() + 60
        while awaited not in output and time.monotonic() < end:
            if select.select([descriptor], [], [], 1)[0]:
                output += os.read(descriptor, 4096)
        return output

    try:
        assert b"ready> " in answer(b"", b"ready> ")
        assert b"doctor" in answer(b"cubelet do\t", b"doctor")
        answer(b"\x15", b"")  # the line is cleared
        assert b"--model.dims=" in answer(b"cubelet fit --model.dim\t", b"--model.dims=")
    finally:
        os.close(descriptor)
        os.waitpid(child, 0)


def test_a_validator_accepts_every_shipped_configuration_and_no_mistake():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    shipped = sorted(PACKAGE.glob("configs/**/*.yaml"))
    assert len(shipped) > 40
    for path in shipped:
        faults = [fault.message for fault in validator.iter_errors(yaml.safe_load(path.read_text()))]
        assert not faults, path
    for mistake in (
        {"modle": {}},
        {"trainer": {"max_step": 3}},
        {"callbacks": {"sample": None}},
        {"model": {"rotary": 3}},
        {"model": {"rotary": [3]}},
        {"model": {"rotary": {"init_args": {}}}},
        {"trainer": []},
    ):
        assert not validator.is_valid(mistake), mistake


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
