"""SpeechDataModule: padded batches of what was said, silence among them, the same after a resume."""

import numpy as np
import pytest
import torch

from cubelet.common.errors import ConfigError
from cubelet.datamodules import SpeechDataModule
from cubelet.datamodules.speech.datamodule import draw_lengths
from cubelet.datamodules.speech.no_speech import make_no_speech
from cubelet.datamodules.speech.usable import frames_needed


def test_a_batch_holds_each_sound_and_text_and_nothing_else(commands):
    data = commands(no_speech=0.0)
    by_text = {u.text: u for u in data.data.train}
    seen = []
    for batch in data.train_dataloader():
        assert batch["waves"].numel() <= 8 * 16_000
        for wave, length, tokens, count, text in zip(
            batch["waves"],
            batch["wave_lengths"],
            batch["tokens"],
            batch["token_lengths"],
            batch["texts"],
            strict=True,
        ):
            assert data.tokenizer.decode(tokens.tolist()) == text
            assert count == len(text)
            assert not wave[length:].any()
            assert not tokens[count:].any()
            if sum(u.text == text for u in data.data.train) == 1:
                np.testing.assert_array_equal(wave[:length], by_text[text].read())
            seen.append(text)
    assert sorted(seen) == sorted(u.text for u in data.data.train)


def test_some_items_have_no_speech_and_differ_from_visit_to_visit(commands):
    data = commands(no_speech=0.2)
    loader = data.train_dataloader()
    quiet = [
        wave[:length]
        for batch in (*loader, *loader)
        for wave, length, text in zip(batch["waves"], batch["wave_lengths"], batch["texts"], strict=True)
        if not text
    ]
    assert len(quiet) == 16
    assert len({wave.numpy().tobytes() for wave in quiet}) > 8
    for seed in range(40):
        wave = make_no_speech(seed, 900)
        assert (wave.shape, wave.dtype) == ((900,), np.float32)
        assert np.abs(wave).max() <= 1
        np.testing.assert_array_equal(wave, make_no_speech(seed, 900))
    lengths = draw_lengths(0, 400, np.array([16_000, 48_000]))
    assert lengths.min() >= 800
    assert (lengths < 8_000).sum() > 40


def test_a_loader_goes_on_from_where_its_state_was_saved(commands):
    data = commands()
    loader = data.train_dataloader()
    batches = [*loader, *loader]
    again = commands().train_dataloader()
    iterator = iter(again)
    for _ in range(3):
        next(iterator)
    resumed = commands().train_dataloader()
    resumed.load_state_dict(again.state_dict())
    for batch, expected in zip([*resumed, *resumed], batches[3:], strict=False):
        assert torch.equal(batch["waves"], expected["waves"])
    with pytest.warns(UserWarning, match="order of the training data changed"):
        commands(seed=0, batch_seconds=6.0).train_dataloader().load_state_dict(again.state_dict())


def test_speed_perturbation_changes_lengths_by_a_tenth_and_stays_within_the_bound(commands):
    data = commands(speed_perturbation=True, no_speech=0.0)
    lengths = {u.text: u.samples for u in data.data.train}
    texts = [u.text for u in data.data.train]
    ratios = set()
    for batch in data.train_dataloader():
        for length, text in zip(batch["wave_lengths"].tolist(), batch["texts"], strict=True):
            if texts.count(text) == 1:
                ratios.add(round(lengths[text] / length, 1))
    assert ratios == {0.9, 1.0, 1.1}


def test_validation_and_test_measure_whole_splits(commands):
    data = commands()
    assert data.splits == ("texts", "voices")
    for loader, split in zip(data.test_dataloader(), data.splits, strict=True):
        texts = [text for batch in loader for text in batch["texts"]]
        assert sorted(texts) == sorted(u.text for u in data.data.held_out[split])


def test_a_checkpoint_of_another_corpus_is_refused(commands, cache):
    data = commands()
    other = SpeechDataModule(utterances=30, held_out=8, cache_dir=str(cache))
    with pytest.raises(ConfigError, match=r"another corpus|alphabet"):
        data.load_state_dict(other.state_dict())
    data.load_state_dict(data.state_dict())


def test_settings_that_cannot_work_are_refused(commands):
    with pytest.raises(ValueError, match="no_speech 1"):
        commands(no_speech=1.0)
    with pytest.raises(ConfigError, match="batch_seconds 0"):
        commands(batch_seconds=0.0)
    with pytest.raises(ConfigError, match=r"leaves no utterance of split .*longer than 0.5 s"):
        commands(max_seconds=0.5)


def test_ctc_needs_a_blank_between_equal_characters():
    assert [frames_needed(text) for text in ("", "abc", "three", "aaa")] == [0, 3, 6, 5]
