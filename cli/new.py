"""`cubelet new KIND NAME`: a component of one's own that trains, with its test, configuration and experiment.

Written into the user's folder, never into the package, and never over a file that is there.
"""

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cubelet.common.errors import ConfigError
from cubelet.common.shipped_files import PACKAGE

from .new_templates import DATA_EXPERIMENT, EXPERIMENT, TEMPLATES
from .suggestions import nearest

USAGE = """usage: cubelet new KIND NAME [--folder FOLDER]

Writes a component that trains, its test, a configuration and an experiment, and shows the commands to try them.
  KIND    KINDS
  NAME    of the class, such as MyIdea
"""


def new_command(arguments: Sequence[str]) -> None:
    """Write the files and print what to type next.

    Raises:
        ConfigError: no such kind, no class name, or files that are there already.
    """
    given = list(arguments)
    if {"-h", "--help"} & set(given) or not given:
        sys.stdout.write(USAGE.replace("KINDS", ", ".join(TEMPLATES)))
        return
    folder = Path()
    for place, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option == "--folder":
            value = value if equals else next(iter(given[place + 1 : place + 2]), "")
            folder = Path(value)
            del given[place : place + (1 if equals else 2)]
            break
    if len(given) != 2:
        raise ConfigError(f"cubelet new takes a kind and a name, such as: cubelet new rotary MyIdea (got {given})")
    kind, name = given
    if kind not in TEMPLATES:
        near = nearest(kind, TEMPLATES)
        raise ConfigError(f"cubelet new knows no {kind!r}; " + (f"did you mean {near}?" if near else kinds()))
    check_class_name(name)
    files = make_files(kind, name)
    there = [str(folder / file) for file in files if (folder / file).exists()]
    if there:
        raise ConfigError(f"{', '.join(there)} exists already and is left alone; choose another name, or --folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    module = module_name(name)
    go = f"cd {folder} && " if folder != Path() else ""
    sys.stdout.write("".join(f"wrote {folder / file}\n" for file in files))
    sys.stdout.write("\n")
    if lacking := missing_packages():
        sys.stdout.write(f"first       pip install {' '.join(lacking)}\n")
    sys.stdout.write(f"test it     {go}pytest test_{module}.py\n")
    sys.stdout.write(f"compare it  {go}cubelet compare {module}_experiment.yaml\n")
    sys.stdout.write(f"train it    {go}cubelet fit --config {module}.yaml\n")


def missing_packages() -> list[str]:
    """Return what pip must install before the commands work: a plain `make fit` brings neither."""
    lacking = [] if importlib.util.find_spec("pytest") else ["pytest"]
    if not all(importlib.util.find_spec(name) for name in ("scipy", "statsmodels", "matplotlib")):
        lacking.append("'cubelet[compare]'")
    return lacking


def kinds() -> str:
    """Return the kinds as a sentence."""
    return f"choose one of {', '.join(TEMPLATES)}"


def check_class_name(name: str) -> None:
    """Raise ConfigError unless `name` can be that of a class, and its module no other one's."""
    if not re.fullmatch(r"[A-Z]\w*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name of a class; give one such as MyIdea")
    module = module_name(name)
    # A file `torch.py` in the working folder would stand before the library.
    if module in sys.stdlib_module_names or module in ("torch", "lightning", "numpy", "cubelet"):
        raise ConfigError(f"a file {module}.py would hide the module {module}; choose another name")


def module_name(name: str) -> str:
    """Return the module of a class: my_idea for MyIdea.

    Example:
        >>> module_name("MyIdea"), module_name("RoPE2D")
        ('my_idea', 'ro_pe2_d')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def make_files(kind: str, name: str) -> dict[str, str]:
    """Return {file name: text} of a new component."""
    template = TEMPLATES[kind]
    module = module_name(name)
    texts = {
        f"{module}.py": template.component,
        f"test_{module}.py": template.test,
        f"{module}.yaml": template.config or data_config(),
        f"{module}_experiment.yaml": DATA_EXPERIMENT if kind == "data" else experiment(template.variant),
    }
    return {file: text.replace("MyIdea", name).replace("my_idea", module) for file, text in texts.items()}


def experiment(variant: str) -> str:
    """Return an experiment that compares a model with and without the component."""
    return EXPERIMENT.replace("VARIANT", variant)


def data_config() -> str:
    """Return a complete configuration: the one of the artificial tasks, with the user's data instead."""
    text = (PACKAGE / "configs/synthetic.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\A(#.*\n)+", "# MyIdea as data: cubelet fit --config my_idea.yaml\n", text)
    text = re.sub(r"^data_class:.*$", "data_class: my_idea.MyIdea", text, flags=re.M)
    return re.sub(r"^data:\n(?:[ ].*\n)+", "data:\n  context_length: 32\n  batch_size: 32\n", text, flags=re.M)
