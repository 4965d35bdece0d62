"""`cubelet data`: what lies in the cache of tokenized text, and `--clean` to remove it."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cubelet.datamodules.cache_contents import clean_cache, list_cache
from cubelet.datamodules.sizes import format_bytes
from cubelet.datamodules.token_cache import default_cache


def data_command(arguments: Sequence[str]) -> None:
    """List the cache, or clean it."""
    parser = argparse.ArgumentParser(
        prog="cubelet data", description="Show the tokenized corpora in the cache; they can all be made again."
    )
    parser.add_argument("--clean", action="store_true", help="remove them, and say what was removed")
    parser.add_argument("names", nargs="*", default=["*"], help="only folders with such names, like 'shakespeare-*'")
    parser.add_argument("--cache_dir", type=Path, default=None, help="instead of $CUBELET_CACHE or ~/.cache/cubelet")
    given = parser.parse_args(arguments)
    cache = given.cache_dir or default_cache()
    if given.clean:
        entries = clean_cache(cache, given.names)
    else:
        entries = [entry for entry in list_cache(cache) if any(entry.path.match(name) for name in given.names)]
    for entry in entries:
        day = time.strftime("%Y-%m-%d", time.localtime(entry.changed))
        tokens = f"{entry.tokens:,} tokens" if entry.state == "whole" else entry.state
        sys.stdout.write(f"{format_bytes(entry.size):>9}  {day}  {entry.path.name}  ({tokens})\n")
    total = format_bytes(sum(entry.size for entry in entries))
    what = "removed" if given.clean else "in all"
    sys.stdout.write(f"{total:>9}  {what}, {len(entries)} corpora in {cache / 'text'}\n")
