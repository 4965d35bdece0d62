"""YAML files read strictly: a fault is one sentence with file, line and the faulty text; a key stands once.

PyYAML keeps the last of two equal keys without a word, and names neither the file nor the text in its errors.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, MissingFileError, UnreadableFileError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads 1e-3 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice (first in line {lines[key]}); keep one", key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text, since it asks for a dot; everybody who writes a learning rate means a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)

MERGE_MARKER = re.compile(r"^(<{7}|={7}|>{7}|\|{7})( |$)")


def load_yaml_file(path: Path | str) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        MissingFileError: there is no such file.
        UnreadableFileError: it cannot be read, or is not UTF-8.
        ConfigError: it is no YAML, holds a key twice, or something else than a mapping; with file, line and text.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[Any, Any]:
    """Return the mapping in `text`; see `load_yaml_file`. `name` stands for the file in messages.

    Example:
        >>> parse_yaml("model:\\n  dims: 64\\n  dims: 32", "a.yaml")
        Traceback (most recent call last):
        cubelet.common.errors.ConfigError: a.yaml, line 3: key 'dims' stands twice (first in line 2); keep one: dims: 32
    """
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if MERGE_MARKER.match(line):
            raise ConfigError(
                f"{name}, line {number}: a merge was left unfinished here; keep one side and delete the markers: {line}"
            )
    try:
        content = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        number = mark.line + 1 if mark else len(lines)
        # An unclosed bracket is noticed where the text ends; the line where it began helps more.
        if error.context_mark and number > len(lines):
            number = error.context_mark.line + 1
        faulty = lines[number - 1] if 0 < number <= len(lines) else ""
        raise ConfigError(f"{name}, line {number}: {_reason(error, faulty)}: {faulty.strip()}") from None
    except yaml.YAMLError as error:  # characters that YAML forbids
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None
    if content is None:
        raise ConfigError(f"{name} is empty; it should hold keys such as `model:`, or not be named at all")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else f"only the value {str(content)[:60]!r}"
        raise ConfigError(f"{name} holds {kind}, where keys such as `model:` with values below are expected")
    return content


def _reason(error: yaml.MarkedYAMLError, line: str) -> str:
    problem = error.problem or error.context or "cannot be read as YAML"
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return "a tab, where YAML takes only spaces to indent"
    if "mapping values are not allowed" in problem:
        return "a second `:` in one line, or wrong indentation; put a value that holds `: ` into quotes"
    if "could not find expected ':'" in problem:
        return "a key without `:` behind it"
    if "expected <block end>" in problem:
        return "indentation that fits no line above"
    return problem


def key_line(path: Path, keys: Sequence[str]) -> int:
    """Return the line in which a nested key stands in a YAML file; 0 where it does not."""
    node: Any = yaml.compose(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    line = 0
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((k, v) for k, v in pairs if str(k.value) == key), None)
        if found is None:
            return 0
        line, node = found[0].start_mark.line + 1, found[1]
    return line
