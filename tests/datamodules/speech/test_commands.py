"""The corpus commands: the same bytes from a seed, whatever came before; held-out texts and voices never trained on."""

import numpy as np
import pytest

from cubelet.common.errors import ConfigError
from cubelet.datamodules.speech.commands import (
    HELD_OUT_VOICES,
    SPLITS,
    TRAINING_VOICES,
    VOICES,
    coloured_noise,
    draw_word_gap,
    is_held_out,
    load_commands,
    make_utterance,
)
from cubelet.datamodules.speech.espeak import synthesize
from cubelet.datamodules.speech.grammar import sentence, spell_number


def test_an_utterance_is_the_same_bytes_whatever_was_said_before():
    alone = make_utterance(7, "train", 3)
    for index in (0, 1, 2):
        make_utterance(7, "train", index)
    again = make_utterance(7, "train", 3)
    assert alone[:2] == again[:2]
    assert alone[2].tobytes() == again[2].tobytes()
    assert make_utterance(8, "train", 3)[2].tobytes() != alone[2].tobytes()


def test_a_corpus_is_what_its_utterances_are_alone(cache):
    corpus = load_commands(cache, 40, 8)
    for split, rows in zip(SPLITS, (corpus.train, *corpus.held_out.values()), strict=True):
        text, voice, wave = make_utterance(0, split, 5)
        row = rows[5]
        assert (row.text, row.speaker, row.samples) == (text, voice, len(wave))
        np.testing.assert_array_equal(row.read(), wave.astype(np.float32) / 32768)
    assert load_commands(cache, 40, 8).sha256 == corpus.sha256


def test_a_fifth_of_the_utterances_is_said_word_by_word():
    draw = np.random.default_rng(0)
    gaps = [draw_word_gap(draw) for _ in range(2000)]
    said_apart = [gap for gap in gaps if gap]
    assert 0.17 < len(said_apart) / len(gaps) < 0.23
    assert (min(said_apart), max(said_apart)) == (1, 40)
    together, apart = (synthesize("three eight seven", "gmw/en-US+m3", word_gap=gap) for gap in (0, 20))
    assert 0.3 < (len(apart) - len(together)) / 22_050 < 0.8


def test_held_out_texts_and_voices_are_never_trained_on(cache):
    corpus = load_commands(cache, 40, 8)
    assert not any(is_held_out(u.text) for u in corpus.train)
    assert {u.speaker for u in corpus.train} <= set(TRAINING_VOICES)
    assert all(is_held_out(u.text) and u.speaker in TRAINING_VOICES for u in corpus.held_out["texts"])
    assert all(is_held_out(u.text) and u.speaker in HELD_OUT_VOICES for u in corpus.held_out["voices"])
    assert (len(VOICES), len(HELD_OUT_VOICES), len(set(TRAINING_VOICES) | set(HELD_OUT_VOICES))) == (42, 6, 42)


@pytest.mark.parametrize("samples", [1, 7, 160, 16_000, 16_411, 40_009])
def test_noise_has_the_length_asked_for_and_unit_power(samples):
    noise = coloured_noise(np.random.default_rng(0), samples)
    assert noise.shape == (samples,)
    assert noise.dtype == np.float32
    assert np.sqrt(np.mean(noise.astype(np.float64) ** 2)) == pytest.approx(1.0, rel=1e-3)


def test_every_voice_speaks():
    for voice in VOICES:
        assert np.abs(synthesize("two", voice)).max() > 1000, voice
    with pytest.raises(ConfigError, match="no voice 'gmw/xx'"):
        synthesize("two", "gmw/xx")


def test_the_vocabulary_is_closed_and_a_tenth_of_the_texts_is_held_out():
    texts = {sentence(np.random.default_rng(i)) for i in range(8000)}
    words = {word for text in texts for word in text.split()}
    assert len(words) <= 145
    assert all(c.isascii() and (c.islower() or c in " '") for text in texts for c in text)
    assert 0.08 < np.mean([is_held_out(text) for text in texts]) < 0.12
    assert [spell_number(n) for n in (7, 13, 40, 99, 100, 2005)] == [
        "seven",
        "thirteen",
        "forty",
        "ninety nine",
        "one hundred",
        "two thousand and five",
    ]
