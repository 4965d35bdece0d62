"""A folder of the cache: one tokenized corpus, with what is known of it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cubelet.common.errors import DiskError
from cubelet.common.files import write_atomic

from .shards import DamagedError, checksums, count_blocks, describe_files, open_files
from .split import DEFAULT_SPLIT, Split
from .token_array import TokenArray, TokenFile
from .tokenizers import KINDS, Tokenizer, tokenizer_from_dict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Part = Literal["train", "val"]
FORMAT = 2  # bump when the files' layout or the tokenizers change


@dataclass(frozen=True)
class TokenizedCorpus:
    """Where a tokenized corpus lies, and what it is.

    Attributes:
        folder: holds the shards.
        tokenizer: what encoded them.
        sha256: digest of the text, both parts.
        train, val: their tokens.
        train_documents, val_documents: (documents,) int64, memory-mapped, where documents begin among the tokens.
        characters_per_token: of the validation text, over its targets (all tokens but the first).
        taken: one line's worth of what was read and what was left out, as plain data.

    Example:
        >>> from cubelet.datamodules import Corpus, prepare
        >>> corpus = prepare(Corpus("mine", "to be or not " * 9, "to be"), "char", None, Path("cache"))
        >>> len(corpus.train), len(corpus.val), corpus.tokenizer.vocab_size
        (117, 5, 7)
    """

    folder: Path
    tokenizer: Tokenizer
    sha256: str
    train: TokenArray
    val: TokenArray
    train_documents: np.ndarray
    val_documents: np.ndarray
    characters_per_token: float
    taken: dict[str, Any] = field(default_factory=dict)

    @property
    def train_tokens(self) -> int:
        return len(self.train)

    @property
    def val_tokens(self) -> int:
        return len(self.val)


Prepared = TokenizedCorpus  # its name in 0.1.0


@dataclass(frozen=True)
class Settings:
    """How a corpus becomes tokens.

    Args:
        tokenizer: `char`, `byte`, `bpe`, or a name for `load_tokenizer`.
        vocab_size: for `bpe`.
        eos: an end token behind each document; None where the tokenizer has one and there are many documents.
        split, val_fraction: see `split_documents`.
        processes: that encode; None for as many as this process may use.
        shard_tokens: tokens of a shard; None for about a gigabyte.

    Example:
        >>> Settings(tokenizer="byte", val_fraction=0.05).tokenizer
        'byte'
    """

    tokenizer: str = "char"
    vocab_size: int | None = None
    eos: bool | None = None
    split: Split = DEFAULT_SPLIT
    val_fraction: float = 0.1
    processes: int | None = None
    shard_tokens: int | None = None

    def key(self) -> list[Any]:
        """What the tokens depend on, for a name in the cache."""
        name = self.tokenizer
        if name not in KINDS and Path(name).expanduser().exists():
            path = Path(name).expanduser()
            files = sorted(path.glob("*.json")) if path.is_dir() else [path]
            name = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return [FORMAT, name, self.vocab_size, self.eos, self.split, self.val_fraction, self.shard_tokens]


def write_meta(folder: Path, arrays: dict[str, list[TokenFile]], tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Write what `open_folder` needs beside the shards; all of it is on the disk afterwards.

    Args:
        arrays: the complete shards of each array.
        about: what else is known, plain data.
    """
    checks = np.concatenate([checksums(file.path) for files in arrays.values() for file in files])
    with (folder / "checks.npy").open("wb") as file:
        np.save(file, checks)
        file.flush()
        os.fsync(file.fileno())
    write_atomic(folder / "tokenizer.json", json.dumps(tokenizer.to_dict()))
    meta = about | {
        "tokenizer_sha256": tokenizer.sha256,
        "checks_sha256": hashlib.sha256(checks.tobytes()).hexdigest(),
        "arrays": {name: describe_files(files) for name, files in arrays.items()},
    }
    write_atomic(folder / "meta.json", json.dumps(meta | {"digest": _own_digest(meta)}, indent=1))


def open_folder(folder: Path) -> TokenizedCorpus:
    """Open a folder of the cache.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = tokenizer_from_dict(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
        if tokenizer.sha256 != meta["tokenizer_sha256"]:
            raise DamagedError("tokenizer.json is another one than wrote the tokens")
        if _own_digest(meta) != meta["digest"]:
            raise DamagedError("meta.json was changed")
        checks = np.load(folder / "checks.npy")
        if hashlib.sha256(checks.tobytes()).hexdigest() != meta["checks_sha256"]:
            raise DamagedError("checks.npy was changed")
        arrays, untouched = {}, True
        for name, files in meta["arrays"].items():
            blocks = count_blocks(files)
            arrays[name], same = open_files(folder, files, checks[:blocks])
            checks, untouched = checks[blocks:], untouched and same
    except DamagedError:
        raise
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DamagedError(str(error)) from error
    if not untouched:  # a copy of a cache: compared in full once
        with contextlib.suppress(OSError):
            meta["arrays"] = {name: describe_files(array.files) for name, array in arrays.items()}
            write_atomic(folder / "meta.json", json.dumps(meta | {"digest": _own_digest(meta)}, indent=1))
    return TokenizedCorpus(
        folder,
        tokenizer,
        meta["sha256"],
        arrays["train"],
        arrays["val"],
        arrays["train-documents"].whole(),
        arrays["val-documents"].whole(),
        meta["characters_per_token"],
        meta["taken"],
    )


def _own_digest(meta: dict[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Hold a lock, on a file that is made for it, as long as the context lasts.

    The file stays: who waits for a lock on a file that is removed meanwhile is not alone with one on the next.

    Yields:
        True where it is held, False where another process holds it (without `wait`), None where there are no locks.
    """
    if fcntl is None:
        yield None
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError:  # some network file systems have no locks
            held = None
        yield held


@contextlib.contextmanager
def locked_index(index: Path, cache: Path) -> Iterator[None]:
    """Hold the lock of an index in a cache, made where it is missing, as long as the context lasts.

    Raises:
        DiskError: something in the cache cannot be written.
    """
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with lock(index.with_suffix(".lock")):
            yield
    except OSError as error:
        if error.errno is None:  # one of this project's, which says all
            raise
        raise DiskError(
            f"the cache {cache} cannot be written ({error}); name another folder with cache_dir or $CUBELET_CACHE"
        ) from error
