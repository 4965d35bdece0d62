"""A run has a folder of its own, and every way to name a checkpoint leads to the right one."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cubelet.cli import run as room
from cubelet.cli.run import LOCK, RUN_VARIABLE, Run, check_name, resolve_checkpoint
from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    # Restored afterwards, since a claim sets it for the processes it starts.
    monkeypatch.setenv(RUN_VARIABLE, "")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def save(path, age=0, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.randn(1000)}} | facts, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def in_child(function, *arguments):
    """Run a function in a forked process and return what it returned, or the name of its error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ[RUN_VARIABLE] = ""
        try:
            answer = str(function(*arguments))
        except Exception as error:
            answer = type(error).__name__
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


def test_ten_runs_that_start_at_once_have_ten_folders(tmp_path):
    start = time.time() + 0.3

    def claim():
        time.sleep(max(0, start - time.time()))
        os.environ[RUN_VARIABLE] = ""
        return Run.claim(tmp_path).name

    pipes = []
    for _ in range(10):
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, claim().encode())
            os._exit(0)
        os.close(write)
        pipes.append(read)
    names = [os.read(read, 100).decode() for read in pipes]
    for _ in pipes:
        os.wait()
    assert len(set(names)) == 10
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(names)


def test_processes_that_a_run_starts_share_its_folder_and_a_later_run_gets_its_own(tmp_path, monkeypatch):
    first, second = Run.claim(tmp_path), Run.claim(tmp_path)
    assert first.folder != second.folder
    monkeypatch.setenv(RUN_VARIABLE, f"{os.getpid() + 1}|from-the-parent")
    assert Run.claim(tmp_path).name == "from-the-parent"
    assert Run.claim(tmp_path, "from-the-parent").name == "from-the-parent"
    assert not (tmp_path / "from-the-parent").exists()  # the parent has made it already


def test_a_name_is_taken_while_its_run_is_in_progress_and_when_it_left_a_checkpoint(tmp_path):
    run = Run.claim(tmp_path, "mine")
    with pytest.raises(ConfigError, match="mine is a run in progress; choose another --run_name"):
        Run.claim(tmp_path, "mine")
    assert in_child(Run.claim, tmp_path, "mine") == "ConfigError"
    save(run.folder / "checkpoints/last.ckpt")
    run.release()
    with pytest.raises(ConfigError, match=r"mine holds an earlier run; .* or go on with --ckpt_path .*mine"):
        Run.claim(tmp_path, "mine")


def test_a_run_that_died_before_its_first_checkpoint_frees_its_name(tmp_path):
    def die():
        run = Run.claim(tmp_path, "mine")
        (run.folder / "metrics.csv").write_text("of the dead run")
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(die)
    assert (tmp_path / "mine" / LOCK).exists()
    run = Run.claim(tmp_path, "mine")
    assert [path.name for path in run.folder.iterdir()] == [LOCK]
    assert (tmp_path / "mine.1" / "metrics.csv").read_text() == "of the dead run"
    run.release()
    assert not run.folder.exists()  # nothing was written
    run.folder.mkdir()
    assert Run.claim(tmp_path, "mine").folder == run.folder  # an empty folder is no run


def test_a_job_that_slurm_started_again_goes_on_in_its_folder(tmp_path, monkeypatch):
    run = Run.claim(tmp_path, "job")
    save(run.folder / "checkpoints/last.ckpt")
    run.release()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert Run.claim(tmp_path, "job").folder == run.folder


def test_one_process_at_a_time_goes_on_in_a_run(tmp_path):
    (tmp_path / "config.yaml").touch()
    run = Run(tmp_path)
    run.resume()
    with pytest.raises(ConfigError, match="still running"):
        Run(tmp_path).resume()
    run.release()
    (tmp_path / "config.yaml").touch()
    Run(tmp_path).resume().release()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_system_without_locks_still_has_exclusive_folders(tmp_path, monkeypatch):
    class NoLocks:
        def __init__(self, *_):
            pass

        def acquire(self, **_):
            raise OSError("no locks")

    monkeypatch.setattr(room, "FileLock", NoLocks)
    names = {Run.claim(tmp_path).name for _ in range(3)}
    assert len(names) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "/abs", "", ".hidden", "..", "a\\b", " x"])
def test_a_name_that_is_no_plain_folder_is_refused(name):
    with pytest.raises(ConfigError, match="is no plain folder name"):
        check_name(name)


@pytest.mark.parametrize("root", ["memory://runs", "s3://bucket/runs"])
def test_other_file_systems_are_refused_and_leave_no_local_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no local folder"):
        Run.claim(root)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_belongs_to_its_run_wherever_that_lies(tmp_path, monkeypatch):
    path = save(tmp_path / "runs/one/checkpoints/last.ckpt")
    monkeypatch.chdir(path.parent)
    assert Run.of("last.ckpt").folder == tmp_path / "runs/one"
    assert Run.of("last.ckpt").config is None
    (tmp_path / "runs/one/config.yaml").touch()
    assert Run.of(path).config == tmp_path / "runs/one/config.yaml"
    assert Run.of(save(tmp_path / "elsewhere/last.ckpt")) is None


def test_every_way_to_name_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    old = save(root / "old/checkpoints/last.ckpt", 30)
    best = save(root / "new/checkpoints/step=5.ckpt", 20)
    # The folder was renamed since the checkpoint was written.
    state = {
        "ModelCheckpoint{'monitor': 'x'}": {"monitor": "x", "best_model_path": "/was/here/checkpoints/step=5.ckpt"}
    }
    last = save(root / "new/checkpoints/last.ckpt", 10, callbacks=state)
    assert resolve_checkpoint("last", root) == str(last)
    assert resolve_checkpoint("best", root) == str(best.resolve())
    assert resolve_checkpoint("runs/old", root) == resolve_checkpoint("old", root) == str(old)
    assert resolve_checkpoint("runs/new/checkpoints", root) == str(last)
    assert resolve_checkpoint(str(best.resolve()), "nowhere") == str(best.resolve())
    assert resolve_checkpoint("hpc", root) is None


def test_a_sharded_checkpoint_is_one_though_it_is_a_folder(tmp_path):
    folder = tmp_path / "run/checkpoints/last.ckpt"
    folder.mkdir(parents=True)
    torch.save({"global_step": 7, "hyper_parameters": {"dims": 8}}, folder / "meta.pt")
    assert resolve_checkpoint("last", tmp_path) == str(folder)
    assert resolve_checkpoint(str(folder), tmp_path) == str(folder)
    assert Run.of(folder).name == "run"
    (folder / "meta.pt").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(MissingFileError, match="no checkpoint"):
        resolve_checkpoint("last", tmp_path)


def test_the_newest_that_can_be_read_is_taken(tmp_path):
    old, new = save(tmp_path / "a/checkpoints/last.ckpt", 20), save(tmp_path / "b/checkpoints/last.ckpt", 10)
    new.write_bytes(new.read_bytes()[:700])  # cut off by a kill
    os.utime(new, (1e9, 1e9))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resolve_checkpoint("last", tmp_path) == str(old)


def test_what_cannot_be_resumed_is_said(tmp_path):
    for word in ("last", "best"):
        with pytest.raises(MissingFileError, match=f"no checkpoint under .* for `{word}`"):
            resolve_checkpoint(word, tmp_path)
    with pytest.raises(MissingFileError, match=r"'nothere.ckpt' does not exist"):
        resolve_checkpoint("nothere.ckpt", tmp_path)
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(UnreadableFileError, match="not a readable checkpoint"):
        resolve_checkpoint(str(tmp_path / "empty.ckpt"), tmp_path)
