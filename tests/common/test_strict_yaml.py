"""Strict reading of YAML; the messages for faulty files are in tests/cli/test_messages.py."""

import pytest
import yaml

from cubelet.common.errors import ConfigError, MissingFileError
from cubelet.common.shipped_files import PACKAGE
from cubelet.common.strict_yaml import load_yaml_file, parse_yaml


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_read_as_the_usual_loader_reads_them(path):
    assert load_yaml_file(path) == yaml.safe_load(path.read_text())


def test_a_rate_without_a_dot_is_a_number():
    assert parse_yaml("lr: 1e-3\nname: e5\nmore: [2E+4, -1.5e-2]", "x") == {
        "lr": 1e-3,
        "name": "e5",
        "more": [2e4, -0.015],
    }


def test_anchors_and_merges_stay_allowed():
    text = "base: &b {a: 1, c: 2}\nother:\n  <<: *b\n  a: 3\n"
    assert parse_yaml(text, "x")["other"] == {"a": 3, "c": 2}


def test_keys_twice_deep_below_are_found():
    with pytest.raises(ConfigError, match=r"x, line 4: key 'b' stands twice \(first in line 3\)"):
        parse_yaml("list:\n  - a: 1\n    b: 2\n    b: 3\n", "x")


def test_a_missing_file_is_told():
    with pytest.raises(MissingFileError, match="no file gone"):
        load_yaml_file("gone.yaml")
