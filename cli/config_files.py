"""`--config` values: short names of shipped files, strict reading before the parser, and the base of a fragment.

- A name such as `rotary/quaternion` is found in the working directory first, then in the package.
- Each file is read once by the strict reader, so a fault is one sentence with file and line.
- A configuration is complete when it says what trains, on what, and how (`model`, `data`, `trainer`). Fragments alone
  are laid over the default text experiment, and so is no configuration at all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from cubelet.common.shipped_files import find_shipped_file
from cubelet.common.strict_yaml import load_yaml_file, parse_yaml

DEFAULT = "text"
OPTIONS = ("--config", "-c")


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with the short name of each `--config` replaced by its path.

    Raises:
        MissingFileError: no such file.
    """
    resolved = list(arguments)
    for place, value in config_values(arguments):
        if not is_inline(value):
            option = resolved[place].partition("=")[0]
            path = str(find_shipped_file(value, "configs"))
            resolved[place] = f"{option}={path}" if option in OPTIONS else path
    return resolved


def config_values(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (place in `arguments`, value) of each `--config`, written with `=` or as two arguments."""
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in OPTIONS:
            continue
        if equals:
            yield place, value
        elif place + 1 < len(arguments):
            yield place + 1, arguments[place + 1]


def is_inline(value: str) -> bool:
    """Return whether a value of `--config` is YAML itself, as jsonargparse allows, and names no file."""
    return "\n" in value or ": " in value or value.startswith("{")


def read_configs(arguments: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, content) of each configuration in `arguments`, whose names are resolved.

    Raises:
        ConfigError: no YAML, a key that stands twice, or no mapping; with file, line and text.
        MissingFileError, UnreadableFileError: as they say.
    """
    return [
        (value, parse_yaml(value, "--config")) if is_inline(value) else (value, load_yaml_file(value))
        for _, value in config_values(arguments)
    ]


def is_complete(config: dict[str, Any]) -> bool:
    """Return whether a configuration can train without another below it."""
    return all(section in config for section in ("model", "data", "trainer"))


def with_base(arguments: Sequence[str], configs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return `arguments` with the default experiment put first where no configuration in them is complete."""
    if any(is_complete(content) for _, content in configs):
        return list(arguments)
    return [f"--config={find_shipped_file(DEFAULT, 'configs')}", *arguments]


def last_value(name: str, arguments: Sequence[str], configs: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """Return the value of a top-level option as the parser would see it: of the last argument, else of the last file.

    None where it is not given. (An option before a `--config` that sets it too counts as later here.)
    """
    value = None
    for _, content in configs:
        value = content.get(name, value)
    for place, argument in enumerate(arguments):
        option, equals, text = argument.partition("=")
        if option == f"--{name}":
            value = text if equals else next(iter(arguments[place + 1 : place + 2]), None)
    return value
