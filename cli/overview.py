"""`cubelet --help`, `cubelet list` and `cubelet --version`: answered from source files, before torch is imported."""

import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cubelet
from cubelet.common.errors import ConfigError
from cubelet.common.shipped_files import PACKAGE, shipped_names
from cubelet.common.strict_yaml import load_yaml_file

from .catalog import KINDS, read_components
from .suggestions import nearest

SECTIONS = (*KINDS, "configs", "experiments")
RESULTS = PACKAGE.parents[1] / "docs" / "results.md"  # in a checkout; a wheel has no docs
VERDICTS = ("helps", "hurts", "no difference seen")
WIDTH = 160  # where there is no terminal


def help_text(commands: Mapping[str, str]) -> str:
    """Return what `cubelet --help` prints: one line for each command, and where to start.

    Args:
        commands: {name: summary}.
    """
    title = f"cubelet {cubelet.__version__}: decoders whose position encoding, attention and optimizer are experiments"
    examples = {
        "cubelet fit": "the default text experiment, about two minutes",
        "cubelet fit --config rotary/quaternion": "a shipped part; cubelet list configs shows all",
        "cubelet new rotary MyIdea": "your own idea, with its test and experiment",
        "cubelet fit --model.dims=256": "another value; cubelet fit --help shows the options",
    }
    lines = [title, "", *(f"  cubelet {name:<12}{summary}" for name, summary in commands.items())]
    lines += ["", "for example", *(f"  {command:<40}{purpose}" for command, purpose in examples.items())]
    lines += ["", "CUBELET_TRACEBACK=1 shows the trace of an error that is told in one line."]
    return "\n".join(lines) + "\n"


def list_command(arguments: Sequence[str]) -> None:
    """Print the components with one line each, the name of their configuration, and a measured verdict where there is
    one.

    Raises:
        ConfigError: `arguments` name no section.
    """
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"usage: cubelet list [SECTION …]\n\nsections: {', '.join(SECTIONS)}\n")
        return
    for name in wanted:
        if name not in SECTIONS:
            near = nearest(name, SECTIONS)
            hint = f"did you mean {near}?" if near else f"choose from {', '.join(SECTIONS)}"
            raise ConfigError(f"cubelet list has no section {name!r}; {hint}")
    verdicts = read_verdicts(RESULTS)
    out: list[str] = []
    for section in wanted or [s for s in SECTIONS if s not in ("configs", "model")]:
        rows = list(_rows(section, verdicts))
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        out += [section, *(_line(row, widths) for row in rows), ""]
    sys.stdout.write("\n".join(out))
    if not wanted:
        sys.stdout.write("\nsecond column: --config NAME; helps, hurts, …: measured, see docs/results.md\n")


def _rows(section: str, verdicts: Mapping[str, str]) -> Iterable[tuple[str, str, str, str]]:
    """(name, configuration, verdict, summary) of each thing in a section."""
    if section in ("configs", "experiments"):
        for name in shipped_names(section):
            summary = first_comment(PACKAGE / section / f"{name}.yaml")
            yield name, "", verdicts.get(name, "") if section == "configs" else "", summary
        return
    configs = config_of_class(section)
    for component in read_components()[section]:
        if component.is_public or section == "embedding":
            config = configs.get(component.class_path, "")
            yield component.name, config, verdicts.get(config, ""), component.summary


def _line(row: tuple[str, str, str, str], widths: Sequence[int]) -> str:
    columns = [f"{text:<{width}}" for text, width in zip(row, widths, strict=False) if width]
    line = "  ".join(["", *columns, row[3]])
    most = shutil.get_terminal_size((WIDTH, 24)).columns
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def first_comment(path: Path) -> str:
    """Return the first comment line of a configuration, or the title of an experiment."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^(?:#|title:) *(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def config_of_class(kind: str) -> dict[str, str]:
    """Return {class path: short name} of the shipped fragments of a kind: for each class the one named after it, else
    the first of those that name the fewest classes."""
    found: dict[str, tuple[int, str]] = {}
    for name in shipped_names("configs"):
        folder, _, stem = name.rpartition("/")
        if folder.removesuffix("s") != kind:
            continue
        text = (PACKAGE / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
        paths = set(re.findall(r"\b(?:cubelet|torch)\.[\w.]+\.[A-Z]\w*", text))
        for path in paths:
            is_namesake = path.rpartition(".")[2].lower().startswith(stem.replace("_", ""))
            found[path] = min(found.get(path, (len(paths), name)), (0 if is_namesake else len(paths), name))
    return {path: name for path, (_, name) in found.items()}


def read_verdicts(path: Path) -> dict[str, str]:
    """Return {short name of a fragment: verdict} of the table of results that `cubelet compare` wrote.

    A row counts for a fragment where the shipped experiment names only that fragment for it (and callbacks).
    """
    if not path.is_file():
        return {}
    by_variant: dict[tuple[str, str], str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| \n").split("|")]
        if len(cells) >= 4 and cells[-1] in VERDICTS:
            by_variant[cells[0], cells[1]] = f"{cells[-1]} {cells[2]}"
    verdicts: dict[str, str] = {}
    contents = {name: load_yaml_file(PACKAGE / "experiments" / f"{name}.yaml") for name in shipped_names("experiments")}
    # A verdict on text stands before one on an artificial task.
    for experiment, content in sorted(
        contents.items(), key=lambda item: not str(item[1].get("base")).endswith("text.yaml")
    ):
        for variant, items in (content.get("variants") or {}).items():
            fragments = [item for item in items if item.endswith(".yaml")]
            others = [item for item in items if item not in fragments and not item.startswith("callbacks.")]
            if len(fragments) == 1 and not others and (experiment, str(variant)) in by_variant:
                name = fragments[0].removeprefix("configs/").removesuffix(".yaml")
                verdicts.setdefault(name, by_variant[experiment, str(variant)])
    return verdicts
