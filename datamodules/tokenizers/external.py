"""Tokenizers made elsewhere: a `tokenizer.json`, a folder of Hugging Face's, an encoding of tiktoken's on this disk.

They take whole documents: unlike this project's own BPE, most cut words across lines, so a long text may be cut only
where a line ends and a letter follows.
"""

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError
from cubelet.common.optional_imports import import_optional

from .base import NamedTokenizer, check_ids, check_text, id_type

_END_TOKENS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
_SAFE_CUT = re.compile(r"\n(?=[^\W\d_])")


def _cut_at_line(text: str) -> int:
    """Behind the last line's end that a letter follows, else behind the last line's end, else at the end."""
    start = max(0, len(text) - 2**20)
    safe = [found.end() for found in _SAFE_CUT.finditer(text, start)]
    return safe[-1] if safe else text.rfind("\n") + 1 or len(text)


class LibraryTokenizer(NamedTokenizer):
    """Any tokenizer of the library `tokenizers`, given as its JSON. Special tokens are added to no text.

    Args:
        model: the content of a `tokenizer.json`.
        eos: its token that ends a document, or None.

    Raises:
        ValueError: an end token that the vocabulary lacks.
    """

    def __init__(self, model: str, eos: str | None = None) -> None:
        from tokenizers import Tokenizer as Library

        self._library = Library.from_str(model)
        self._library.no_padding()
        self._library.no_truncation()
        self._model = json.loads(self._library.to_str())
        self._size = max(self._library.get_vocab(with_added_tokens=True).values()) + 1
        self.eos = eos
        self._eos_id = None if eos is None else self._library.token_to_id(eos)
        if eos is not None and self._eos_id is None:
            raise ValueError(f"the end token {eos!r} is not in the tokenizer's vocabulary of {self._size} tokens")

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def eos_id(self) -> int | None:
        return self._eos_id

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=id_type(self._size))

    def cut(self, text: str) -> int:
        return _cut_at_line(text)

    def decode(self, ids: Iterable[int]) -> str:
        listed = [int(i) for i in ids]
        check_ids(listed, self._size)
        return self._library.decode(listed, skip_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "library", "model": self._model, "eos": self.eos}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(json.dumps(state["model"]), state["eos"])


class TiktokenTokenizer(NamedTokenizer):
    """An encoding of the package `tiktoken`, whole: checkpoints need the package, but no file of its.

    Args:
        name: of the encoding.
        pattern: its regular expression.
        ranks: {token's bytes as base64: id}.
        special: {special token: id}.
    """

    def __init__(self, name: str, pattern: str, ranks: dict[str, int], special: dict[str, int]) -> None:
        tiktoken = import_optional("tiktoken", "data")
        self._dict = {"kind": "tiktoken", "name": name, "pattern": pattern, "ranks": ranks, "special": special}
        raw = {base64.b64decode(token): rank for token, rank in ranks.items()}
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=raw, special_tokens=special)
        self._size = self._encoding.max_token_value + 1
        self._known = set(ranks.values()) | set(special.values())

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def eos_id(self) -> int | None:
        return self._dict["special"].get("<|endoftext|>")

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self._encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=id_type(self._size))

    def cut(self, text: str) -> int:
        return _cut_at_line(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 and ids that no token has become U+FFFD."""
        listed = [int(i) for i in ids]
        check_ids(listed, self._size)
        known = self._encoding.decode_tokens_bytes([i for i in listed if i in self._known])
        tokens = iter(known)
        return b"".join(next(tokens) if i in self._known else b"\xef\xbf\xbd" for i in listed).decode(
            "utf-8", "replace"
        )

    def to_dict(self) -> dict[str, Any]:
        return self._dict

    def __getstate__(self) -> dict[str, Any]:
        return self._dict

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{key: value for key, value in state.items() if key != "kind"})


def load_library_tokenizer(path: Path) -> LibraryTokenizer:
    """The tokenizer of a `tokenizer.json`, or of a folder that holds one (or GPT-2's vocab.json and merges.txt).

    Raises:
        MissingFileError: a folder without such files.
        UnreadableFileError: a file that is no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            model = file.read_text(encoding="utf-8")
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            model = _gpt2_model(path / "vocab.json", path / "merges.txt")
        else:
            raise MissingFileError(
                f"tokenizer: the folder {path} holds neither tokenizer.json nor vocab.json and merges.txt; save it "
                "with a fast tokenizer's save_pretrained"
            )
        return LibraryTokenizer(model, _end_token(folder, model))
    except MissingFileError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise UnreadableFileError(f"tokenizer: {file} is no tokenizer that can be read: {error}") from error


def _gpt2_model(vocab: Path, merges: Path) -> str:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    library = Library(models.BPE.from_file(str(vocab), str(merges)))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    # The two files do not say which tokens are special; GPT-2's end token has this name in its vocabulary.
    library.add_special_tokens([token for token in _END_TOKENS[:1] if library.token_to_id(token) is not None])
    return library.to_str()


def _end_token(folder: Path, model: str) -> str | None:
    """As the files beside it say, else a special token with a usual name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            eos = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
            if eos:
                return eos["content"] if isinstance(eos, dict) else eos
    added = [token["content"] for token in json.loads(model).get("added_tokens", [])]
    return next((token for token in _END_TOKENS if token in added), None)


def load_tiktoken(name: str) -> TiktokenTokenizer | None:
    """tiktoken's encoding of that name (`gpt2`, `cl100k_base`, …) from its cache on this disk; nothing is fetched.

    Returns:
        None where tiktoken is not installed or knows no such name.

    Raises:
        MissingFileError: the encoding's files are not on this disk.
    """
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        return None
    if name not in tiktoken.list_encoding_names():
        return None
    fetch = tiktoken.load.read_file

    def refuse(address: str) -> bytes:
        raise MissingFileError(
            f"tokenizer '{name}': its file {address} is not on this disk; fetch it once where there is a network with "
            f"TIKTOKEN_CACHE_DIR=some/folder python -c \"import tiktoken; tiktoken.get_encoding('{name}')\", and name "
            "that folder in TIKTOKEN_CACHE_DIR here"
        )

    tiktoken.load.read_file = refuse
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        if isinstance(error, MissingFileError):
            raise
        raise ConfigError(f"tokenizer '{name}' cannot be loaded by tiktoken: {error}") from error
    finally:
        tiktoken.load.read_file = fetch
    ranks = {base64.b64encode(token).decode(): rank for token, rank in encoding._mergeable_ranks.items()}
    return TiktokenTokenizer(name, encoding._pat_str, ranks, dict(encoding._special_tokens))
