"""Tokenizers: round trips, nanoGPT's ids, the `tokenizers` library itself, and what they refuse."""

import json
import pickle
import random
import time
import unicodedata

import numpy as np
import pytest

from cubelet.common.errors import UserError
from cubelet.datamodules.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    build_tokenizer,
    load_tokenizer,
    tokenizer_from_dict,
)
from cubelet.datamodules.tokenizers.bpe import LONGEST
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


# BPE: the library's tokens, by words that are looked up


def any_text(draw, characters, length):
    """Mostly characters on which words depend, and any others that this Python knows."""
    crucial = "  \t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\xa0\u3000'_-12²Ⅷab's'll're!?\u0301"
    return "".join(draw.choice(crucial) if draw.random() < 0.7 else draw.choice(characters) for _ in range(length))


@pytest.fixture(scope="module")
def known_characters():
    return [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cs", "Cn")]


def test_any_unicode_comes_back_and_bpe_is_the_library_line_by_line(known_characters):
    bpe, draw = build_tokenizer("bpe", TEXT + "héllo ² Ⅷ _x_ \x1c a \u2028b\u3000c" * 20, 320), random.Random(0)
    for _ in range(700):
        text, more = any_text(draw, known_characters, draw.randint(0, 60)), any_text(draw, known_characters, 20)
        ids = bpe.encode(text)
        assert ids == [i for line in text.splitlines(keepends=True) for i in bpe._library.encode(line).ids], text
        assert bpe.decode(ids) == ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
        cut = bpe.cut(text)
        assert bpe.encode(text[:cut]) + bpe.encode(text[cut:] + more) == bpe.encode(text + more), (text, more)


def test_characters_that_only_a_newer_unicode_knows_are_left_to_the_library():
    bpe = build_tokenizer("bpe", TEXT, 300)
    unknown = next(
        chr(p) for p in range(0x10FFFF, 0, -1) if unicodedata.category(chr(p)) == "Cn" and p & 0xFFFE < 0xFFFE
    )
    text = f"to {unknown}be\nspeak{unknown}{unknown} 12 {unknown}\n\nAll:\n"
    assert bpe.encode(text) == [i for line in text.splitlines(keepends=True) for i in bpe._library.encode(line).ids]
    assert bpe.decode(bpe.encode(text)) == text


def test_a_run_of_letters_is_cut_in_training_and_encoding_alike():
    dna = "".join(random.Random(0).choices("ACGT", k=150_000))
    before = time.process_time()
    bpe = build_tokenizer("bpe", dna, 1024)
    ids = bpe.encode(dna)
    assert bpe.decode(ids) == dna
    assert time.process_time() - before < 5  # 0.1.0 took 36 s for 400,000 letters, and did not finish with 3 million
    starts = np.cumsum([0] + [len(bpe.decode([i])) for i in ids])
    assert set(range(0, len(dna), LONGEST)) <= set(starts.tolist())  # no token reaches over a cut


def test_half_a_character_is_one_sentence(tokenizer):
    with pytest.raises(
        ValueError, match=r"lone surrogate \(U\+D83D\) at position 3|unknown characters: '.ud83d' \(U\+D83D\)"
    ):
        tokenizer.encode("Spe\ud83dk")


# Made elsewhere


def test_a_tokenizer_json_and_a_folder_of_hugging_faces(tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<pad>"]
    library.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    library.save(str(tmp_path / "tokenizer.json"))
    for name in (tmp_path / "tokenizer.json", tmp_path):
        tokenizer = load_tokenizer(str(name))
        assert tokenizer.encode(TEXT) == library.encode(TEXT).ids
        assert tokenizer.decode(tokenizer.encode(TEXT[:50])) == TEXT[:50]
        assert (tokenizer.vocab_size, tokenizer.eos_id) == (library.get_vocab_size(), 0)
        assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
        assert pickle.loads(pickle.dumps(tokenizer)).encode("All:") == tokenizer.encode("All:")
    (tmp_path / "gpt2").mkdir()
    library.model.save(str(tmp_path / "gpt2"))
    assert {path.name for path in (tmp_path / "gpt2").iterdir()} == {"vocab.json", "merges.txt"}
    tokenizer = load_tokenizer(str(tmp_path / "gpt2"))
    assert tokenizer.encode(TEXT) == library.encode(TEXT).ids
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (library.get_vocab_size(), 0)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<pad>"}}')
    assert load_tokenizer(str(tmp_path)).eos_id == 1
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer that can be read"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"tokenizer: there is no file or folder .*/absent\.json"):
        load_tokenizer("absent.json")
    with pytest.raises(UserError, match=r"tokenizer 'gpt9' is unknown"):
        load_tokenizer("gpt9")


def test_tiktoken_from_this_disk_and_never_from_the_network(tmp_path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(UserError, match=r"tokenizer 'r50k_base': its file https://.* is not on this disk"):
        load_tokenizer("r50k_base")
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257}
    special = {"<|endoftext|>": 258}
    own = tiktoken.Encoding("r50k_base", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {"r50k_base": own})  # as if its file had been there
    tokenizer = load_tokenizer("r50k_base")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (259, 258)
    assert tokenizer.encode("the then") == own.encode_ordinary("the then") == [257, 32, 257, 110]
    assert tokenizer.decode([257, 258, 0xC3]) == "the<|endoftext|>\ufffd"
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again, again.encode("the")) == (tokenizer, [257])
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the") == [257]
