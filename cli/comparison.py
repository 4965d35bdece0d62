"""`cubelet compare`, which gets from the command line how to compose a configuration and how to fit."""

from collections.abc import Sequence

from cubelet.common.errors import UserError
from cubelet.compare.command import compare_command
from cubelet.compare.runs import CommandLine

from . import lightning_cli
from .errors import user_message
from .lightning_cli import compose
from .quiet import quiet_dependencies


def fit(arguments: Sequence[str]) -> None:
    """Do `cubelet fit ARGUMENTS` in this process.

    Raises:
        UserError: whatever the command line would say in one line, a full disk included.
    """
    try:
        lightning_cli.fit(arguments)
    except Exception as error:
        if message := user_message(error):
            raise UserError(message) from error
        raise


COMMAND_LINE = CommandLine(compose, fit)


def compare(arguments: Sequence[str]) -> None:
    """Do `cubelet compare ARGUMENTS`; raises what goes wrong."""
    quiet_dependencies()
    compare_command(arguments, COMMAND_LINE)
