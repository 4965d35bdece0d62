"""Tokenizers: round trips, nanoGPT's ids, the `tokenizers` library itself, and what they refuse."""

import json
import pickle

import pytest

from cubelet.datamodules.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    build_tokenizer,
    tokenizer_from_dict,
)
from tests.reference.data import slow_char_ids

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak — naïve 語 😀!\n" * 20


@pytest.fixture(params=["char", "byte", "bpe"])
def tokenizer(request):
    return build_tokenizer(request.param, TEXT, 300 if request.param == "bpe" else None)


@pytest.mark.parametrize("text", [TEXT, "", "a", "\n\n\n", "語😀", "speak\n", " speak  speak "])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).tolist() == ids


def test_travels_as_json_and_by_pickle(tokenizer):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert type(other) is type(tokenizer)
        assert other == tokenizer
        assert other.sha256 == tokenizer.sha256
        assert other.vocab_size == tokenizer.vocab_size
        assert other.encode(TEXT) == tokenizer.encode(TEXT)


def test_sha256_tells_tokenizers_apart():
    all_of_them = [CharTokenizer("ab"), CharTokenizer("ba"), ByteTokenizer(), build_tokenizer("bpe", TEXT, 280)]
    all_of_them.append(build_tokenizer("bpe", TEXT, 281))
    assert len({tokenizer.sha256 for tokenizer in all_of_them}) == 5
    assert CharTokenizer("ab") != CharTokenizer("ba")
    assert build_tokenizer("bpe", TEXT, 280).sha256 == all_of_them[3].sha256  # training is deterministic


def test_characters_get_nanogpts_ids():
    tokenizer = build_tokenizer("char", TEXT)
    assert tokenizer.encode(TEXT) == slow_char_ids(TEXT, TEXT)
    assert tokenizer.vocab_size == len(set(TEXT))


def test_unknown_characters_are_named():
    tokenizer = CharTokenizer("ab \n")
    with pytest.raises(
        ValueError, match=r"unknown characters: '!' \(EXCLAMATION MARK\), 'é' \(LATIN SMALL.*position 3"
    ):
        tokenizer.encode("ab é!")
    with pytest.raises(ValueError, match=r"U\+0007"):
        tokenizer.encode("\a")
    with pytest.raises(ValueError, match="and 12 more"):
        tokenizer.encode("cdefghijklmnopqrstuv")


@pytest.mark.parametrize("ids", [[300], [-1], [0, 1, 999]])
def test_ids_outside_the_vocabulary_are_named(tokenizer, ids):
    with pytest.raises(ValueError, match=f"token id {ids[-1]} is outside the vocabulary of {tokenizer.vocab_size}"):
        tokenizer.decode(ids)


def test_bytes_are_utf_8_and_broken_ones_still_decode():
    assert ByteTokenizer().encode("é\n") == [0xC3, 0xA9, 10]
    assert ByteTokenizer().decode([0xC3, 65]) == "�A"


def test_bpe_has_the_size_asked_for_compresses_and_is_the_librarys():
    from tokenizers import Tokenizer as Library

    tokenizer = build_tokenizer("bpe", TEXT, 320)
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.vocab_size == 320
    assert len(tokenizer.encode(TEXT)) < len(TEXT) / 3
    library = Library.from_str(json.dumps(tokenizer.to_dict()["model"]))
    lines = TEXT.splitlines(keepends=True)
    assert tokenizer.encode(TEXT) == [i for line in lines for i in library.encode(line).ids]
    assert len(tokenizer.encode("Ωmega")) > 0  # bytes, so nothing is unknown


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("word", None, "tokenizer 'word' is unknown; there are: char, byte, bpe"),
        ("bpe", None, "needs a vocab_size"),
        ("bpe", 256, "vocab_size 256 leaves byte-level BPE no merges"),
        ("bpe", 100_000, r"yields only \d+ BPE tokens"),
        ("char", 64, "vocab_size 64 was given, but tokenizer 'char'"),
    ],
)
def test_bad_settings_are_refused(kind, size, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(kind, TEXT, size)


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(ValueError, match="kind is 'gpt2'"):
        tokenizer_from_dict({"kind": "gpt2"})
    with pytest.raises(ValueError, match="alphabet has 3 characters, 2 of them different"):
        CharTokenizer("aba")
