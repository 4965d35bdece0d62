"""What `cubelet compare` gets from the command line: composing a configuration without running it, and fitting."""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cubelet.common.errors import ConfigError, UserError
from cubelet.compare.command import compare_command
from cubelet.compare.runs import CommandLine

from .main import CubeletCLI, main, start


class _Composer(CubeletCLI):
    """Parses, and does nothing."""

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def compose(arguments: Sequence[str]) -> Mapping[str, Any]:
    """The whole configuration of `cubelet fit ARGUMENTS`; takes dotted keys.

    Raises:
        ConfigError: what the command line says of it, in one line.
    """
    output, argv = io.StringIO(), sys.argv
    try:
        with contextlib.redirect_stderr(output):
            return start(_Composer, ["fit", *arguments]).config["fit"]
    except SystemExit:
        lines = [line.strip() for line in output.getvalue().splitlines() if line.strip()]
        lines = [line.removeprefix("error: ") for line in lines if not line.startswith("all options:")]
        raise ConfigError("; ".join(lines) or "the command line refuses it without a word") from None
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    finally:
        sys.argv = argv


def fit(arguments: Sequence[str]) -> None:
    """Do `cubelet fit ARGUMENTS` in this process."""
    main(["fit", *arguments])


COMMAND_LINE = CommandLine(compose, fit)


def compare(arguments: Sequence[str]) -> None:
    """`cubelet compare ARGUMENTS`."""
    try:
        compare_command(arguments, COMMAND_LINE)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
