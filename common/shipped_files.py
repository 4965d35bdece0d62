"""Files that come with the package: configurations and experiments, found by a short name from any folder.

`rotary/quaternion` is `configs/rotary/quaternion.yaml` of the package; a file of the working directory wins.
"""

import difflib
from pathlib import Path

from .errors import MissingFileError

PACKAGE = Path(__file__).absolute().parents[1]  # not resolved: a checkout holds links to its rooms here
ENDINGS = ("", ".yaml", ".yml")


def find_shipped_file(name: str, room: str) -> Path:
    """Return the file that `name` means.

    Args:
        name: a path, or the short name of a shipped file, with or without ending: `rotary/quaternion`,
            `configs/rotary/quaternion.yaml`.
        room: folder of the package to look in: `configs` or `experiments`.

    Raises:
        MissingFileError: with the nearest shipped name, or where it looked.
    """
    for ending in ENDINGS:
        if Path(name + ending).is_file():
            return Path(name + ending)
    for short in (name, name.removeprefix(f"{room}/")):
        for ending in ENDINGS:
            path = PACKAGE / room / (short + ending)
            if not Path(short).is_absolute() and path.is_file():
                return path
    known = shipped_names(room)
    short = name.removeprefix(f"{room}/").removesuffix(".yml").removesuffix(".yaml")
    near = difflib.get_close_matches(short, known, n=2, cutoff=0.6)
    # The last part alone: `quaternion` for `rotary/quaternion`.
    near = near or [known_name for known_name in known if known_name.rpartition("/")[2] == short.rpartition("/")[2]]
    hint = f"did you mean {' or '.join(near)}?" if near else f"`cubelet list {room}` shows those that are shipped"
    raise MissingFileError(f"there is no file {name}, and none of that name among the shipped {room}; {hint}")


def shipped_names(room: str) -> list[str]:
    """Return the short names of all shipped files of a room, sorted."""
    root = PACKAGE / room
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
