"""A check that setuptools cannot make: everything about the package stands in pyproject.toml.

A checkout without support for links (git on Windows with `core.symlinks=false`) holds small text files where
`src/cubelet` should link to the rooms, and would install an empty package without a word.
"""

from pathlib import Path

from setuptools import setup

package = Path(__file__).parent / "src" / "cubelet"
if missing := [room for room in ("models", "callbacks", "configs") if not (package / room).is_dir()]:
    raise SystemExit(
        f"src/cubelet/{missing[0]} is not a link to a folder, since this checkout was made without links. Switch on "
        "developer mode (Windows), then run `git config core.symlinks true` and `git checkout -- src`; or install the "
        "wheel, which needs no links"
    )
setup()
