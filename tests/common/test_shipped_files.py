"""Shipped files found by short names."""

import pytest

from cubelet.common.errors import MissingFileError
from cubelet.common.shipped_files import PACKAGE, find_shipped_file, shipped_names


@pytest.mark.parametrize("name", ["rotary/quaternion", "rotary/quaternion.yaml", "configs/rotary/quaternion.yaml"])
def test_a_fragment_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shipped_file(name, "configs") == PACKAGE / "configs/rotary/quaternion.yaml"


def test_a_file_of_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rotary").mkdir()
    (tmp_path / "rotary/quaternion.yaml").touch()
    assert find_shipped_file("rotary/quaternion", "configs").resolve() == tmp_path / "rotary/quaternion.yaml"


@pytest.mark.parametrize(("name", "near"), [("rotary/quaternon", "rotary/quaternion"), ("quaternion", "rotary/qu")])
def test_a_missing_one_is_told_with_the_nearest(name, near):
    with pytest.raises(MissingFileError, match=f"did you mean {near}"):
        find_shipped_file(name, "configs")


def test_all_names_lead_to_files():
    for room in ("configs", "experiments"):
        assert shipped_names(room)
        assert all(find_shipped_file(f"{room}/{name}", room).is_file() for name in shipped_names(room))
