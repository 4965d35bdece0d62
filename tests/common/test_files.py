import os

import pytest

from cubelet.common.files import rotate_backup, write_atomic


def test_text_bytes_and_views_are_written_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    for data, expected in ("ü\n", "ü\n".encode()), (b"\0\1", b"\0\1"), (memoryview(b"xyz"), b"xyz"):
        write_atomic(path, data)
        assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_a_name_that_is_no_utf_8_is_written_as_text_shows_it(tmp_path):
    write_atomic(tmp_path / "page", f"corpus {os.fsdecode(b'caf' + bytes([0xE9]))}")
    assert (tmp_path / "page").read_text() == r"corpus caf\udce9"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_at_any_point_keeps_the_old_file_and_leaves_nothing_behind(call, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert list(tmp_path.iterdir()) == []


def test_backups_take_the_first_free_number(tmp_path):
    path = tmp_path / "log.txt"
    assert rotate_backup(path) is None
    for run in "abc":
        path.write_text(run)
        rotate_backup(path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"log.1.txt": "a", "log.2.txt": "b", "log.3.txt": "c"}
