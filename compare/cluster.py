"""Runs on the machines of a cluster, as one job array of SLURM.

By submitit (https://github.com/facebookincubator/submitit), which knows the scheduler; nothing is scheduled here.

The folder of the runs must be on a disk that all machines share. A run finds its lock and its last checkpoint there as
it does on one machine, so a command given again after a failure submits what is missing and nothing else.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cubelet.common.errors import ConfigError
from cubelet.common.optional_imports import import_optional

from .processes import Fit, Progress, ProgressCallback, RunResult, one_line, read_result, select_waiting, train
from .runs import Run

ENGINES = ("processes", "slurm", "local")


def parse_parameters(items: Sequence[str]) -> dict[str, Any]:
    """`["timeout_min=60", "slurm_partition=gpu"]` as a mapping, values read as YAML.

    Raises:
        ConfigError: an item without "=".
    """
    parameters = {}
    for item in items:
        name, joined, value = item.partition("=")
        if not joined:
            raise ConfigError(f"--cluster {item!r} must be NAME=VALUE, such as timeout_min=60 or slurm_partition=gpu")
        parameters[name] = yaml.safe_load(value)
    return parameters


@dataclass(frozen=True)
class Cluster:
    """Does runs as a job array; `execute` has the arguments of `processes.execute`.

    Args:
        engine: "slurm", or "local" for submitit's own stand-in on this machine.
        parameters: of submitit's executor: timeout_min, mem_gb, cpus_per_task, gpus_per_node, slurm_partition, ….
        poll_seconds: between two looks at the jobs.
    """

    engine: str = "slurm"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    poll_seconds: float = 5.0

    def execute(
        self, runs: Iterable[Run], root: Path, fit: Fit, jobs: int = 1, on_progress: ProgressCallback | None = None
    ) -> dict[str, RunResult]:
        """Submit what is not finished, wait for it, and return {key: result}; `jobs` run at a time at most."""
        results, waiting = select_waiting(runs, root)
        if not waiting:
            return results
        submitted = self._submit(waiting, root, fit, jobs)
        progress = Progress(len(waiting), jobs=jobs)
        began = time.monotonic()
        open_jobs = dict(zip([run.key for run in waiting], zip(waiting, submitted, strict=True), strict=True))
        try:
            while open_jobs:
                time.sleep(self.poll_seconds)
                for key, (run, job) in list(open_jobs.items()):
                    if not job.done():
                        continue
                    del open_jobs[key]
                    fault = _fault(job)
                    results[key] = read_result(run, root) or RunResult(run, fault=fault or "ended without measures")
                    progress.done += 1
                    progress.seconds.append((time.monotonic() - began) * jobs / progress.done)
                    progress.active = [run for run, job in open_jobs.values() if job.state == "RUNNING"]
                    if on_progress:
                        on_progress(progress, results[key])
        finally:
            for _, job in open_jobs.values():
                job.cancel()
        return results

    def _submit(self, runs: Sequence[Run], root: Path, fit: Fit, jobs: int) -> list[Any]:
        submitit = import_optional("submitit", "cluster")
        executor = submitit.AutoExecutor(root.parent / "jobs", cluster=self.engine)
        array = {"slurm_array_parallelism": max(1, jobs)} if self.engine == "slurm" else {}
        try:
            executor.update_parameters(**{"timeout_min": 60, "name": "cubelet", **array, **self.parameters})
        except (TypeError, NameError, ValueError, AssertionError) as error:
            raise ConfigError(f"--cluster: {one_line(str(error))}") from error
        folder = root.resolve()
        return executor.map_array(train, list(runs), [folder] * len(runs), [fit] * len(runs))

    def describe(self, runs: Iterable[Run], root: Path, jobs: int) -> list[str]:
        """The job array that `execute` would submit, one line a task."""
        _, waiting = select_waiting(runs, root)
        head = f"job array of {len(waiting)} tasks, {max(1, jobs)} at a time, by submitit ({self.engine})"
        options = ", ".join(f"{name}={value}" for name, value in {"timeout_min": 60, **self.parameters}.items())
        return [f"{head}: {options}", *(f"[{i}] {run.shell(root)}" for i, run in enumerate(waiting))]


def _fault(job: Any) -> str | None:
    try:
        return job.result()
    except Exception as error:  # of the job or of the cluster; its own words are in the job's log
        return one_line(f"{job.state}: {error}")
