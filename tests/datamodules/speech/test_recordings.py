"""Ten recorded sentences (pocketsphinx-testdata, BSD): people's voices go through corpus, batches, model and times."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cubelet.datamodules import SpeechDataModule
from cubelet.datamodules.speech import read_audio
from tests.lightning_modules.test_speech_recognizer import small

FOLDER = Path(__file__).parents[2] / "data" / "pocketsphinx"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The sentences about playing cards as the held-out split."""
    root = tmp_path_factory.mktemp("recordings")
    for file in FOLDER.iterdir():
        if file.suffix in (".flac", ".txt"):
            split = "dev" if file.name.startswith("card") else "train"
            (root / split).mkdir(exist_ok=True)
            shutil.copy(file, root / split)
    return SpeechDataModule(str(root), batch_seconds=16.0, no_speech=0.0)


def test_ten_sentences_are_a_corpus(data):
    everything = [*data.data.train, *data.data.held_out["dev"]]
    assert len(everything) == 10
    assert sum(len(u.text.split()) for u in everything) == 92
    assert sum(u.seconds for u in everything) == pytest.approx(34.4, abs=0.1)
    assert not data.data.left_out
    for batch in data.train_dataloader():
        assert batch["waves"].numel() <= 16 * 16_000
        assert float(batch["waves"].abs().max()) <= 1


def test_recordings_say_in_a_batch_what_they_say_alone(data):
    model = small()
    model.tokenizer = data.tokenizer
    assert data.vocab_size <= model.transcriber.ctc_head.out_features
    waves = [u.read() for u in (*data.data.train, *data.data.held_out["dev"])]
    texts = [u.text for u in (*data.data.train, *data.data.held_out["dev"])]
    found = model.align(waves, texts)
    assert found == [model.align([wave], [text])[0] for wave, text in zip(waves, texts, strict=True)]
    for (text, words), wave in zip(found, waves, strict=True):
        assert " ".join(word.word for word in words) == text
        borders = [border for word in words for border in (word.start, word.end)]
        assert borders == sorted(borders)
        assert borders[-1] <= len(wave) / 16_000


def test_a_recording_is_the_same_sound_at_another_rate(data, tmp_path):
    soxr, soundfile = pytest.importorskip("soxr"), pytest.importorskip("soundfile")
    wave = read_audio(FOLDER / "card-005.flac")
    soundfile.write(tmp_path / "low.wav", soxr.resample(wave, 16_000, 22_050), 22_050)
    again = read_audio(tmp_path / "low.wav")
    assert abs(len(again) - len(wave)) <= 1
    size = min(len(again), len(wave))
    assert np.abs(again[:size] - wave[:size]).max() < 0.05 * np.abs(wave).max()
