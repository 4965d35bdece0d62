"""The `cubelet` command (also installed as `lightning`): which command is meant, and what is said where it fails.

- A command's module is imported when it is chosen, so that help, lists and mistyped names need no torch.
- What the user can mend (`UserError`) is one line and exit status 2. Everything else keeps its trace, with one line
  below that names the innermost place outside this package, and exit status 1.
- Commands that are not ours are passed on to lightning-sdk where it is installed, since it claims the name `lightning`.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cubelet
from cubelet.common.errors import ConfigError

from .arguments import prepare_arguments, takes_runs_config
from .config_files import config_values
from .errors import summary, user_message
from .fit_help import ALL, help_page
from .overview import help_text
from .suggestions import nearest


class Command(NamedTuple):
    """Where a command is done: `function(arguments)` of a module below `cubelet.cli`; and what it does, in a line."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "fit": Command("lightning_cli", "fit", "train a model"),
    "compare": Command("comparison", "compare", "train variants and seeds of an experiment; say what helps"),
    "new": Command("new", "new_command", "start an idea: component, test, configuration and experiment"),
    "list": Command("overview", "list_command", "components, configurations and experiments, with verdicts"),
    "doctor": Command("doctor", "doctor_command", "versions, devices, folders; what is missing and how to mend it"),
    "completion": Command("completion", "completion_command", "completion for a shell, JSON schema for editors"),
    "generate": Command("generate", "generate_command", "continue a prompt from a checkpoint"),
    "transcribe": Command("transcribe", "transcribe_command", "write down what audio files say, by a checkpoint"),
    "data": Command("data", "data_command", "show the cache of tokenized text; --clean removes it"),
    "validate": Command("lightning_cli", "validate", "validation loss of a checkpoint"),
    "test": Command("lightning_cli", "test", "test loss of a checkpoint"),
    "predict": Command("lightning_cli", "predict", "continue several prompts from a checkpoint"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console scripts `cubelet` and `lightning`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Read by jsonargparse: Lightning calls it by names it has deprecated, which is theirs to change.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # A component of the user's own is named by its module, which lies where the command is given.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        command = find_command(given)
        if command is not None:
            command()
    except Exception as error:
        message = user_message(error)
        if message is None:
            error.add_note(summary(error))  # Python prints it below the trace
            raise
        if os.environ.get("CUBELET_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2) from error


def find_command(given: list[str]) -> Callable[[], Any] | None:
    """Return the command that `given` asks for, ready to be called; None where lightning-sdk took it.

    Raises:
        ConfigError: there is no such command.
    """
    name = next((argument for argument in given if not argument.startswith("-")), None)
    if name is None:
        if {"--version", "-V"} & set(given):
            return lambda: sys.stdout.write(f"cubelet {cubelet.__version__}\n")
        if unknown := [option for option in given if option not in ("-h", "--help")]:
            raise ConfigError(f"{unknown[0]} belongs behind a command, as in: cubelet fit {' '.join(unknown)}")
        return lambda: sys.stdout.write(help_text({name: command.summary for name, command in COMMANDS.items()}))
    if name in COMMANDS:
        command = COMMANDS[name]
        rest = [argument for place, argument in enumerate(given) if place != given.index(name)]
        if command.module == "lightning_cli" and {"-h", "--help"} & set(given):
            return lambda: sys.stdout.write(help_page(name, rest))
        if command.module == "lightning_cli":
            if not takes_runs_config(name, rest):
                prepare_arguments(
                    name, rest
                )  # says what is wrong before torch is imported; done again where it is used
            announce(name, rest)
        function = getattr(importlib.import_module(f"cubelet.cli.{command.module}"), command.function)
        return lambda: function(rest)
    if forward(name):
        return None
    near = nearest(name, COMMANDS)
    raise ConfigError(f"there is no command {name!r}; " + (f"did you mean {near}?" if near else "see cubelet --help"))


def announce(name: str, arguments: list[str]) -> None:
    """Say at once what was understood: importing torch takes seconds."""
    prints = any(a.startswith("--print_config") or a.endswith(".help") or ".help=" in a or a == ALL for a in arguments)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"
    if prints or name == "predict" or not is_first:  # what they print is for programs, too
        return
    configs = " + ".join(value for _, value in config_values(arguments))
    default = "the run's configuration" if takes_runs_config(name, arguments) else "text, the default experiment"
    sys.stdout.write(f"cubelet {name}: {configs or default} (loading torch)\n")
    sys.stdout.flush()


def forward(command: str) -> bool:
    """Hand a command that is not ours to lightning-sdk; False where that is not installed."""
    try:
        entries = importlib.metadata.distribution("lightning-sdk").entry_points
    except importlib.metadata.PackageNotFoundError:
        return False
    for entry in entries:
        if entry.group == "console_scripts" and entry.name == "lightning":
            sys.stderr.write(f"`{command}` is not a cubelet command; passing it on to lightning-sdk\n")
            entry.load()()
            return True
    return False


def __getattr__(name: str) -> Any:
    # Where 0.1.0 had them; `lightning_cli` imports torch, which this module must not.
    if name in ("CubeletCLI", "Parser", "Generation", "data_class"):
        from . import lightning_cli

        return getattr(lightning_cli, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
