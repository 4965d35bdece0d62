"""Transcripts: one normal form, three special tokens, round trips."""

import pytest

from cubelet.datamodules.speech.tokenizer import SpeechTokenizer, normalize_text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello,  WORLD!", "hello world"),
        ("’Tis rock 'n' roll -- don’t", "tis rock n roll don't"),
        ("cafe\u0301", "café"),
        ("Über-Straße 12", "über straße 12"),
        (" … ", ""),
        ("नमस्ते", "नमस्ते"),
    ],
)
def test_texts_have_one_normal_form(text, normal):
    assert normalize_text(text) == normal
    assert normalize_text(normal) == normal


def test_texts_come_back_and_specials_are_dropped():
    tokenizer = SpeechTokenizer.from_texts(["turn on", "it's"])
    assert tokenizer.decode(tokenizer.encode("it turns on")) == "it turns on"
    assert tokenizer.encode(" ") == [3]
    assert tokenizer.vocab_size == 3 + len(set("turn on it's"))
    o, n, space = tokenizer.encode("on ")
    assert tokenizer.decode([1, 0, o, n, space, space, o, 2, n]) == "on o"
    again = SpeechTokenizer.from_dict(tokenizer.to_dict())
    assert (again.alphabet, again.sha256) == (tokenizer.alphabet, tokenizer.sha256)


def test_what_is_unknown_is_refused():
    tokenizer = SpeechTokenizer("ab")
    with pytest.raises(ValueError, match=r"outside the alphabet 'ab': \['c'\]"):
        tokenizer.encode("abc")
    with pytest.raises(ValueError, match="token 5 is outside"):
        tokenizer.decode([5])
    with pytest.raises(ValueError, match="kind is 'char'"):
        SpeechTokenizer.from_dict({"kind": "char", "alphabet": "ab"})
    with pytest.raises(ValueError, match="give each once"):
        SpeechTokenizer("aa")
