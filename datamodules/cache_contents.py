"""What lies in the cache of tokenized text, and how to be rid of it. All of it can be made again from the corpora."""

import fnmatch
import json
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .folder import lock


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache.

    Attributes:
        path: of the folder.
        size: bytes of its files.
        state: "whole", "unfinished" (a build that was stopped, which goes on when it is asked for again), "0.1.0" (of
            that version, not used any more) or "damaged".
        tokens: in it, where it is whole.
        changed: when its newest file was written, in seconds since 1970.
    """

    path: Path
    size: int
    state: str
    tokens: int
    changed: float


def list_cache(cache: Path) -> list[CacheEntry]:
    """The tokenized corpora in a cache, the largest first."""
    folders = [path for path in (cache / "text").glob("*") if path.is_dir() and path.name != "index"]
    return sorted((_look(path) for path in folders), key=lambda entry: -entry.size)


def _look(path: Path) -> CacheEntry:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    tokens = 0
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        tokens = sum(file["length"] for part in ("train", "val") for file in meta["arrays"][part])
        state = "whole"
    except (OSError, ValueError, KeyError, TypeError):
        old = (path / "train.npy").is_file()
        state = "0.1.0" if old else "unfinished" if path.suffix == ".part" else "damaged"
    changed = max((file.st_mtime for file in files), default=time.time())
    return CacheEntry(path, sum(file.st_size for file in files), state, tokens, changed)


def clean_cache(cache: Path, names: Iterable[str] = ("*",)) -> list[CacheEntry]:
    """Remove tokenized corpora; what a process is building at this moment stays.

    Args:
        cache: see `default_cache`.
        names: patterns of the folders to remove, such as "shakespeare-*".

    Returns:
        What was removed.
    """
    removed, names = [], list(names)
    for entry in list_cache(cache):
        if not any(fnmatch.fnmatch(entry.path.name, name) for name in names):
            continue
        guard = entry.path.with_name(f".{entry.path.name.removesuffix('.part')}.lock")
        with lock(guard, wait=False) as free:
            if free is False:
                continue
            shutil.rmtree(entry.path, ignore_errors=True)
        removed.append(entry)
    _forget(cache / "text" / "index")
    return removed


def _forget(index: Path) -> None:
    """Remove entries of the index that name folders which are gone."""
    for path in index.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            folders = json.loads(path.read_text(encoding="utf-8")).get("folders", [])
            if not all((index.parent / folder).is_dir() for folder in folders):
                path.unlink()
