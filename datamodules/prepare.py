"""A corpus as token files in a cache folder, made once and shared by every process and run.

The folder's name holds a digest of the text and the tokenizer's settings, so a changed text is another folder and
nothing is ever stale. It is built under a temporary name and renamed when it is whole: whoever comes second, on this
machine or another that shares the cache, finds either nothing or all of it. A lock file spares processes that start
together the same work; the rename alone makes it safe.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .corpora import Corpus
from .tokenizers import Tokenizer, build_tokenizer, tokenizer_from_dict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1  # bump when the files' layout or the tokenizers change


@dataclass(frozen=True)
class Prepared:
    """Where a prepared corpus lies, and what it is.

    Attributes:
        folder: holds `train.npy` and `val.npy`, one-dimensional, unsigned.
        tokenizer: what encoded them.
        sha256: digest of the text, both parts.
        train_tokens, val_tokens: their lengths.
        characters_per_token: of the validation text, over its targets (all tokens but the first).
    """

    folder: Path
    tokenizer: Tokenizer
    sha256: str
    train_tokens: int
    val_tokens: int
    characters_per_token: float


def default_cache() -> Path:
    """`$CUBELET_CACHE`, else `$XDG_CACHE_HOME/cubelet`, else `~/.cache/cubelet`."""
    if chosen := os.environ.get("CUBELET_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cubelet"


def prepare(corpus: Corpus, kind: str, vocab_size: int | None, cache: Path) -> Prepared:
    """Tokenizes `corpus` into `cache`, unless that has been done before, and says where.

    Args:
        corpus: the text.
        kind: `char`, `byte` or `bpe`; see `build_tokenizer`.
        vocab_size: for `bpe`.
        cache: any writable folder.

    Raises:
        ValueError: an empty part, or what `build_tokenizer` refuses.
        RuntimeError: the cache cannot be written, or the folder is there but damaged.
    """
    for part, text in (("training", corpus.train), ("validation", corpus.val)):
        if not text:
            raise ValueError(
                f"corpus '{corpus.name}' leaves no {part} text ({len(corpus.train)} + {len(corpus.val)} characters)"
            )
    digest = text_sha256(corpus)
    key = hashlib.sha256(json.dumps([FORMAT, digest, kind, vocab_size]).encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", Path(corpus.name).stem.lower()).strip("-")[:32] or "text"
    folder = cache / "text" / f"{name}-{kind}-{key}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder.parent / ".lock"):
                if not folder.is_dir():
                    _build(corpus, kind, vocab_size, digest, folder)
        except OSError as error:
            raise RuntimeError(
                f"the cache {cache} cannot be written ({error}); name another folder with cache_dir or $CUBELET_CACHE"
            ) from error
    return _open(folder)


def text_sha256(corpus: Corpus) -> str:
    """Digest of both parts of the text and where one ends."""
    hashed = hashlib.sha256(corpus.train.encode("utf-8"))
    hashed.update(b"\xff")  # never part of UTF-8
    hashed.update(corpus.val.encode("utf-8"))
    return hashed.hexdigest()


def _build(corpus: Corpus, kind: str, vocab_size: int | None, digest: str, folder: Path) -> None:
    # Characters that only the validation text has are part of the alphabet too, as in nanoGPT; merges are learned from
    # the training text alone.
    tokenizer = build_tokenizer(kind, corpus.train if kind == "bpe" else corpus.train + corpus.val, vocab_size)
    width = np.uint8 if tokenizer.vocab_size <= 2**8 else np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    train, val = (tokenizer.encode_array(text).astype(width) for text in (corpus.train, corpus.val))
    meta = {
        "sha256": digest,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "characters_per_token": (len(corpus.val) - len(tokenizer.decode(val[:1]))) / max(1, len(val) - 1),
    }
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        np.save(work / "train.npy", train)
        np.save(work / "val.npy", val)
        (work / "tokenizer.json").write_text(json.dumps(tokenizer.to_dict(), ensure_ascii=False), encoding="utf-8")
        (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        work.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster; its folder holds the same
            os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open(folder: Path) -> Prepared:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = tokenizer_from_dict(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
        lengths = {part: len(np.load(folder / f"{part}.npy", mmap_mode="r")) for part in ("train", "val")}
        if any(lengths[part] != meta[f"{part}_tokens"] for part in lengths):
            raise ValueError(f"{lengths} tokens, but {meta} was written")
        return Prepared(folder, tokenizer, **meta)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RuntimeError(
            f"the prepared text in {folder} is damaged ({error}); delete that folder and start again"
        ) from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
