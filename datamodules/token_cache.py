"""A corpus as token files in a cache folder, made once and shared by every process and run.

- The text is read as a stream, twice (three times for a tokenizer that is learned): first to count and to take digests,
  then to encode. Memory does not depend on its size.
- A later run finds the cache by the names, sizes and times of the corpus's files and reads none of them. Where those
  changed but the text did not, a digest finds it.
- A folder is built under a temporary name and renamed when it is whole and on the disk: whoever comes second, on this
  machine or another that shares the cache, finds either nothing or all of it. A build that was stopped, by Ctrl-C or a
  kill, goes on where its journal says. A lock spares processes that start together the same work.
- Damage (a shard that was cut, overwritten, zeroed; another alphabet) is noticed and the folder made again.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from cubelet.common.files import write_atomic

from .build import CorpusBuilder
from .corpora import Corpus
from .folder import Part, Settings, TokenizedCorpus, locked_index, open_folder
from .shards import DamagedError
from .sources import Source
from .tokenizers import KINDS, check_kind

RACE = 0.1  # seconds; a file changed so shortly before it was read may change again without a change of its times


def default_cache() -> Path:
    """`$CUBELET_CACHE`, else `$XDG_CACHE_HOME/cubelet`, else `~/.cache/cubelet`."""
    if chosen := os.environ.get("CUBELET_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cubelet"


def prepare(corpus: Corpus | Source, kind: str, vocab_size: int | None, cache: Path, **options: Any) -> TokenizedCorpus:
    """Tokenize one corpus into `cache`, unless that has been done before, and say where; see `tokenize_corpora`.

    Args:
        kind, vocab_size: of the tokenizer, see `Settings`. options: further ones of `Settings`.
    """
    source = corpus.source() if isinstance(corpus, Corpus) else corpus
    return tokenize_corpora([source], Settings(kind, vocab_size, **options), cache)[0]


def tokenize_corpora(
    sources: list[Source], settings: Settings, cache: Path, parts: list[Part | None] | None = None
) -> list[TokenizedCorpus]:
    """Tokenize several corpora with one tokenizer into `cache`, where that has not been done before.

    Args:
        sources: what to read; a learned tokenizer is learned from the training parts of all of them.
        settings: how they become tokens.
        parts: of each, "train" or "val" where all of it is for that, None where it is split.

    Raises:
        ConfigError: settings that do not fit, an empty part. DiskError: no room, or a cache that cannot be written.
        UnreadableFileError: a corpus that cannot be read.
    """
    if settings.tokenizer in KINDS:
        check_kind(settings.tokenizer, settings.vocab_size)
    begun = time.time()
    roles: list[Part | None] = parts or [None for _ in sources]
    signatures = [source.signature() for source in sources]
    held_out = [None if source.held_out is None else source.held_out.signature() for source in sources]
    known = all(s is not None for s in signatures) and all(
        h is not None for source, h in zip(sources, held_out, strict=True) if source.held_out is not None
    )
    name = hashlib.sha256(json.dumps([settings.key(), roles, signatures, held_out]).encode()).hexdigest()[:32]
    index = cache / "text" / "index" / f"{name}.json"
    if known and (found := _find(index, cache)) is not None:
        return found
    with locked_index(index, cache):
        if known and (found := _find(index, cache)) is not None:
            return found
        done = CorpusBuilder(sources, settings, roles, cache / "text", rank_zero_warn).run()
        if known and _newest(signatures) < (begun - RACE) * 1e9:
            write_atomic(index, json.dumps({"folders": [corpus.folder.name for corpus in done]}))
        return done


def _newest(signatures: list[Any]) -> float:
    """The latest time among signatures, in nanoseconds."""
    if isinstance(signatures, list):
        return max((_newest(part) for part in signatures), default=0.0)
    return float(signatures) if isinstance(signatures, int) and signatures > 10**18 else 0.0


def _find(index: Path, cache: Path) -> list[TokenizedCorpus] | None:
    try:
        folders = json.loads(index.read_text(encoding="utf-8"))["folders"]
        return [open_folder(cache / "text" / folder) for folder in folders]
    except (OSError, ValueError, KeyError, TypeError, DamagedError):
        return None  # the build looks again, and tells what is damaged
