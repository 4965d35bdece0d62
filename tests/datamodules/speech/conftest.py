"""A small corpus of commands, and files of sound."""

import numpy as np
import pytest
import soundfile

from cubelet.datamodules import SpeechDataModule


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(cache):
    """commands(…): a SpeechDataModule of 40 utterances and twice 8 held out."""

    def make(**options):
        return SpeechDataModule(utterances=40, held_out=8, cache_dir=str(cache), **{"batch_seconds": 8.0, **options})

    return make


@pytest.fixture
def write_sound(tmp_path):
    """write_sound(name, seconds): a file with a tone."""

    def write(name, seconds=1.0, rate=16_000, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
        soundfile.write(path, tone, rate, **options)
        return path

    return write
