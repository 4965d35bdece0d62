"""Imports of what only comparisons use, with one sentence where it is missing."""

import importlib
from typing import Any


def need(module: str, extra: str = "compare") -> Any:
    """Import `module`.

    Raises:
        ImportError: names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"`cubelet compare` needs {package}: pip install -e '.[{extra}]' ({error})") from error
