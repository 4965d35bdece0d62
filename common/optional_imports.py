"""Imports of packages that only an extra installs, with one sentence where they are missing."""

import importlib
from typing import Any

from .errors import UserError


class MissingExtraError(UserError, ImportError):
    """A package that belongs to an extra is not installed."""


def import_optional(module: str, extra: str = "compare") -> Any:
    """Import `module`.

    Args:
        module: dotted name.
        extra: of this project that installs it.

    Raises:
        MissingExtraError: says which extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"this needs {package}: pip install 'cubelet[{extra}]' ({error})") from error
