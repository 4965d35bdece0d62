import json

import pytest

from cubelet.callbacks.jsonl_log import ResumableJSONL


def lines(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_what_is_appended_is_there_before_any_close(tmp_path):
    path = tmp_path / "deep" / "dump.jsonl"
    file = ResumableJSONL(path, step=0)
    assert not path.exists()  # nothing is made before there is something to write
    file.append([{"step": 1, "name": "a"}, {"step": 1, "name": "b"}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "name": "a"},
        {"step": 1, "name": "b"},
    ]


def test_lines_past_the_step_and_a_torn_line_are_cut_off(tmp_path):
    path = tmp_path / "dump.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3, 4))
    path.write_text(whole + '{"step": 2, "na')
    file = ResumableJSONL(path, step=2)
    assert lines(path) == [1, 2, 2]
    file.append([{"step": 3}])
    assert lines(path) == [1, 2, 2, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_the_earlier_run_comes_first_in_a_new_folder(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new" / "new.jsonl"
    ResumableJSONL(old, 0).append([{"step": step} for step in (1, 2, 3)])
    ResumableJSONL(new, 2, earlier=old).append([{"step": 3}, {"step": 4}])
    assert lines(new) == [1, 2, 3, 4]
    assert lines(old) == [1, 2, 3]
    ResumableJSONL(new, 3, earlier=old)  # resumed again: its own file counts, not the first one
    assert lines(new) == [1, 2, 3]


def test_a_cut_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "dump.jsonl"
    ResumableJSONL(path, 0).append([{"step": 1}, {"step": 2}])
    before = path.read_text()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        ResumableJSONL(path, 1)
    assert path.read_text() == before


def test_a_new_run_leaves_what_is_there(tmp_path):
    path = tmp_path / "dump.jsonl"
    for run in (10, 20, 30):
        ResumableJSONL(path, 0).append([{"step": run}])
    assert lines(path) == [30]
    assert lines(tmp_path / "dump.1.jsonl") == [10]
    assert lines(tmp_path / "dump.2.jsonl") == [20]
