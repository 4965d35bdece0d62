"""How long a run takes to say its first line and to make its first step.

python benchmarks/start.py [--rounds 5] [--python /path/to/another/environment/bin/python]

CPU-seconds of the whole process, which do not depend on what else the machine does as much as seconds do; the least of
the rounds counts. The first line also in seconds of the clock. Linux only: CPU time of a running process is read from
/proc.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROBE = """import os, time
from lightning.pytorch import Callback

class FirstStep(Callback):
    def on_train_batch_end(self, *arguments):
        print(f"first step after {time.process_time():.3f} CPU-seconds", flush=True)
        os._exit(0)
"""


def cpu_seconds(process: int) -> float:
    """Return user and system time of a running process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(python: str, folder: str) -> tuple[float, float, float]:
    """Return seconds and CPU-seconds to the first line, and CPU-seconds to the end of the first step."""
    command = [python, "-u", "-c", "from cubelet.cli.main import main; main()", "fit"]
    command += ["--trainer.callbacks=first_step.FirstStep"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    run = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    run.stdout.readline()
    line = time.monotonic() - begin
    line_cpu = cpu_seconds(run.pid)
    rest = run.stdout.read()
    run.wait()
    (step,) = (float(text.split()[3]) for text in rest.splitlines() if text.startswith("first step"))
    return line, line_cpu, step


def main() -> None:
    """Print the least of several rounds."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--python", default=sys.executable, help="interpreter of the environment to measure")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "first_step.py").write_text(PROBE)
        rounds = [measure(given.python, folder) for _ in range(given.rounds)]
    line, line_cpu, step = (min(values) for values in zip(*rounds, strict=True))
    print(f"first line after {line:.2f} s ({line_cpu:.2f} CPU-seconds); first step after {step:.2f} CPU-seconds")


if __name__ == "__main__":
    main()
