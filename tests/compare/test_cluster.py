"""Runs by submitit's stand-in for a cluster on this machine, and the array that would be submitted."""

import pytest

from cubelet.cli.comparison import COMMAND_LINE, fit
from cubelet.common.errors import ConfigError
from cubelet.compare.cluster import Cluster, parse_parameters
from cubelet.compare.command import compare_command
from cubelet.compare.experiment import load_experiment
from cubelet.compare.runs import RunBuilder


@pytest.mark.slow
def test_runs_of_a_cluster_are_those_of_this_machine_and_a_failure_is_told(tiny, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra `cluster`")
    broken = ["trainer.callbacks=[{class_path: tests.compare.test_processes.FullDisk}]"]
    builder = RunBuilder(load_experiment(tiny({"full": broken})), COMMAND_LINE.compose)
    runs = [builder.run("base", 0, 8), builder.run("full", 0, 8)]
    reports = []
    cluster = Cluster("local", {"timeout_min": 5}, poll_seconds=0.2)
    results = cluster.execute(runs, tmp_path / "runs", fit, 2, lambda progress, result: reports.append(progress.done))
    assert results[runs[0].key].measures["steps"] == 8
    assert "No space left" in results[runs[1].key].fault
    assert reports == [1, 2]
    again = cluster.execute(runs[:1], tmp_path / "runs", fit, 2)  # finished: nothing is submitted
    assert again[runs[0].key].loss == results[runs[0].key].loss
    with pytest.raises(ConfigError, match="--cluster: "):
        Cluster("local", {"timeout_hours": 5}).execute(runs[1:], tmp_path / "runs", fit)


@pytest.mark.slow
def test_a_dry_run_prints_the_job_array(tiny, tmp_path, capsys):
    command = [str(tiny({})), "--out", str(tmp_path), "--plan", "--engine", "slurm", "--jobs", "3"]
    compare_command([*command, "--cluster", "slurm_partition=gpu", "timeout_min=90"], COMMAND_LINE)
    lines = capsys.readouterr().out.splitlines()
    [head] = [i for i, line in enumerate(lines) if line.startswith("job array")]
    assert lines[head].startswith("job array of 8 tasks, 3 at a time, by submitit (slurm): timeout_min=90")
    assert "slurm_partition=gpu" in lines[head]
    assert [line.partition("]")[0] for line in lines[head + 1 :]] == [f"[{i}" for i in range(8)]
    assert all("cubelet fit --config=" in line for line in lines[head + 1 :])
    assert not list(tmp_path.iterdir())


def test_parameters_are_read_as_yaml_and_faulty_ones_are_told():
    assert parse_parameters(["timeout_min=60", "slurm_partition=gpu", "mem_gb=1.5"]) == {
        "timeout_min": 60,
        "slurm_partition": "gpu",
        "mem_gb": 1.5,
    }
    with pytest.raises(ConfigError, match="'gpu' must be NAME=VALUE"):
        parse_parameters(["gpu"])
