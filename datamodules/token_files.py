"""Tokens that others made, used where they lie: nanoGPT's and Megatron's `.bin`, `.npy`.

Nothing is copied. The files are read once, for the largest id, a digest and the places where documents begin; what was
found is kept in the cache under the files' names, sizes and times.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError, UnreadableFileError
from cubelet.common.files import write_atomic

from .folder import Part, Settings, TokenizedCorpus, locked_index
from .progress import progress_bar
from .sources import FoundFile
from .text_files import show
from .token_array import TokenArray, TokenFile
from .tokenizers import KINDS, IdTokenizer, Tokenizer, load_tokenizer

_MEGATRON = b"MMIDIDX\x00\x00"
_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # Megatron's codes
_PIECE = 1 << 22  # tokens looked at at a time


def is_token_corpus(path: Path) -> bool:
    """Whether a path is a file of tokens, or a folder with `train.bin` in it."""
    # `os.path`: pathlib raises where a folder may not be looked into.
    return (path.suffix in (".bin", ".npy", ".idx") and os.path.isfile(path)) or os.path.isfile(path / "train.bin")


def open_token_corpus(path: Path, settings: Settings, cache: Path, part: Part | None = None) -> TokenizedCorpus:
    """Tokens of a file, or of a folder's `train.bin` and `val.bin`.

    Args:
        path: `.npy`; `.bin` of uint16, or with Megatron's `.idx` beside it of what that says; a folder.
        settings: `tokenizer`, one that exists already, or left at `char` where there is none; `vocab_size`, where
            it is not the largest id and one; `val_fraction`, the share of the tokens at the end that is held out, where
            there is no `val.bin`.
        cache: keeps what was found.
        part: "train" or "val" where all of a file is for that.

    Raises:
        UnreadableFileError: a file that is not what it seems. ConfigError: ids beyond the vocabulary.
    """
    files = [path / "train.bin", path / "val.bin"] if path.is_dir() else [path]
    if path.is_dir() and part is not None:
        files = [path / f"{part}.bin"]
    seen = [_look(file, cache) for file in files if file.is_file()]
    arrays = [array for array, _, _ in seen]
    documents = [starts for _, starts, _ in seen]
    top = max(found["largest"] for _, _, found in seen)
    tokenizer = _tokenizer(settings, top, path)
    if len(seen) == 1:
        share = {"train": 0.0, "val": 1.0, None: settings.val_fraction}[part]
        cut = len(arrays[0]) - int(len(arrays[0]) * share)
        arrays = [_part(arrays[0], 0, cut), _part(arrays[0], cut, len(arrays[0]))]
        documents = [documents[0], np.unique(np.append(0, documents[0][documents[0] >= cut] - cut))]
        documents[0] = documents[0][documents[0] < cut]
    digest = hashlib.sha256(json.dumps([found["sha256"] for _, _, found in seen] + [len(arrays[0])]).encode())
    about = {
        "joined": any(len(starts) > 1 for _, starts, _ in seen),
        "documents": sum(len(starts) for _, starts, _ in seen),
        "characters": 0,
        "tokens": sum(map(len, arrays)),
        "left_out": {},
    }
    places = (arrays[0], arrays[1], documents[0], documents[1])
    return TokenizedCorpus(path, tokenizer, digest.hexdigest(), *places, float("nan"), about)


def _tokenizer(settings: Settings, largest: int, path: Path) -> Tokenizer:
    if settings.tokenizer in KINDS:
        tokenizer: Tokenizer = IdTokenizer(settings.vocab_size or largest + 1)
    else:
        tokenizer = load_tokenizer(settings.tokenizer, settings.vocab_size)
    if largest >= tokenizer.vocab_size:
        raise ConfigError(
            f"corpus: {show(path)} holds the id {largest}, beyond a vocabulary of {tokenizer.vocab_size} tokens; name "
            "the tokenizer that made it, or a larger vocab_size"
        )
    return tokenizer


def _part(array: TokenArray, start: int, stop: int) -> TokenArray:
    parts, at = [], 0
    for file in array.files:
        a, b = max(start - at, 0), min(stop - at, file.length)
        if a < b:
            parts.append(file.part(a, b))
        at += file.length
    return TokenArray(parts or [array.files[0].part(0, 0)])


def _look(path: Path, cache: Path) -> tuple[TokenArray, np.ndarray, dict[str, Any]]:
    """A file's tokens, the places of its documents, and what reading it once found."""
    if path.suffix == ".idx":
        path = path.with_suffix(".bin")
    if path.suffix == ".npy":
        try:
            array, starts = TokenArray([TokenFile.npy(path)]), np.zeros(1, np.int64)
        except ValueError as error:
            raise UnreadableFileError(f"corpus: {error}") from error
    elif path.with_suffix(".idx").is_file():
        array, starts = _read_megatron(path.with_suffix(".idx"))
    else:
        size = path.stat().st_size
        if size % 2 or not size:
            raise UnreadableFileError(f"corpus: {show(path)} has {size} bytes; nanoGPT's tokens are of two bytes each")
        array, starts = TokenArray([TokenFile(path, "uint16", 0, size // 2)]), np.zeros(1, np.int64)
    about = FoundFile.of(str(path.absolute()), path.stat()).signature()
    name = hashlib.sha256(json.dumps(["tokens", array.dtype.name, about]).encode()).hexdigest()[:32]
    index = cache / "text" / "index" / f"{name}.json"
    found = _read_index(index)
    if found is None:
        with locked_index(index, cache):  # ranks that start together read and write one after the other
            found = _read_index(index) or _read_through(array, path)
            write_atomic(index, json.dumps(found))
    return array, starts, found


def _read_index(index: Path) -> dict[str, Any] | None:
    try:
        return json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_through(array: TokenArray, path: Path) -> dict[str, Any]:
    digest, largest = hashlib.sha256(), 0
    with progress_bar(f"reading {show(path.name)}", len(array)) as advance:
        for start in range(0, len(array), _PIECE):
            tokens = array.read(start, _PIECE)
            digest.update(tokens.tobytes())
            if int(tokens.min()) < 0:
                raise UnreadableFileError(f"corpus: {show(path)} holds a negative id near token {start}")
            largest = max(largest, int(tokens.max()))
            advance(len(tokens))
    return {"sha256": digest.hexdigest(), "largest": largest}


def _read_megatron(index: Path) -> tuple[TokenArray, np.ndarray]:
    """The tokens of a Megatron data set and where its documents begin."""
    data = index.read_bytes()
    try:
        if data[:9] != _MEGATRON:
            raise ValueError("it does not begin with MMIDIDX")
        version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9)
        at = 9 + struct.calcsize("<QBQQ")
        lengths = np.frombuffer(data, "<i4", sequences, at).astype(np.int64)
        pointers = np.frombuffer(data, "<i8", sequences, at + 4 * sequences)
        bounds = np.frombuffer(data, "<i8", documents, at + 12 * sequences)
        dtype = np.dtype(_TYPES[code])
        begins = np.cumsum(lengths) - lengths
        if version != 1 or not np.array_equal(pointers, begins * dtype.itemsize):
            raise ValueError(f"version {version}, or sequences that do not lie one after the other")
    except (ValueError, KeyError, struct.error) as error:
        raise UnreadableFileError(f"corpus: {show(index)} is no index as Megatron writes: {error}") from error
    tokens, path = int(lengths.sum()), index.with_suffix(".bin")
    if path.stat().st_size != tokens * dtype.itemsize:
        raise UnreadableFileError(
            f"corpus: {show(path)} has {path.stat().st_size} bytes, its index says {tokens * dtype.itemsize}"
        )
    starts = begins[bounds[:-1]] if documents else np.zeros(1, np.int64)
    return TokenArray([TokenFile(path, dtype.name, 0, tokens)]), np.unique(np.append(0, starts))
