"""Sound: every format and rate comes out as the same 16 kHz mono tone; what is damaged or unclear is refused."""

import warnings

import numpy as np
import pytest
import soundfile

from cubelet.common.errors import MissingFileError, UnreadableFileError
from cubelet.datamodules.speech import audio
from cubelet.datamodules.speech.audio import audio_samples, read_audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_tone_is_the_same_tone_from_every_format_and_rate(write_sound, suffix, rate):
    wave = read_audio(write_sound(f"tone.{suffix}", rate=rate))
    assert wave.dtype == np.float32
    assert abs(len(wave) - 16_000) <= (2_000 if suffix == "mp3" else 16)
    middle = wave[4_000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)  # lossy formats


def test_the_length_from_the_header_is_the_length_that_is_read(write_sound):
    path = write_sound("tone.flac", seconds=0.7531, rate=22_050)
    assert abs(audio_samples(path) - len(read_audio(path))) <= 1


def test_an_array_needs_its_rate():
    with pytest.raises(ValueError, match="has no rate"):
        read_audio(np.zeros(100, dtype=np.float32))
    with pytest.raises(ValueError, match="rate 0"):
        read_audio(np.zeros(100, dtype=np.float32), rate=0)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float64"])
def test_integers_mean_the_range_of_their_type(kind):
    wave = np.array([0.0, 0.5, -0.5])
    scaled = {"int16": wave * 2**15, "int32": wave * 2**31, "uint8": wave * 2**7 + 2**7, "float64": wave}[kind]
    np.testing.assert_allclose(read_audio(scaled.astype(kind), rate=16_000), wave, atol=1e-2)


def test_stereo_is_averaged_and_reported_once(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_reported_channels", False)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(800, 0.5), np.full(800, -0.25)], 1), 16_000)
    with pytest.warns(UserWarning, match=r"stereo.wav has 2 channels; they are averaged"):
        wave = read_audio(path)
    np.testing.assert_allclose(wave, 0.125, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_audio(path)


def test_a_wav_file_that_was_cut_off_is_noticed(write_sound):
    path = write_sound("tone.wav")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (read_audio, audio_samples):
        with pytest.raises(UnreadableFileError, match=r"was cut off: its header announces 32,000 bytes"):
            read(path)
    # A program that writes to a pipe cannot know the size.
    place = data.index(b"data")
    path.write_bytes(data[: place + 4] + b"\xff\xff\xff\xff" + data[place + 8 :])
    assert len(read_audio(path)) == 16_000


def test_what_is_no_audio_is_told_by_its_name(tmp_path):
    with pytest.raises(MissingFileError, match=r"no audio file .*nothing.wav"):
        read_audio(tmp_path / "nothing.wav")
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(UnreadableFileError, match=r"text.wav cannot be read as audio"):
        read_audio(tmp_path / "text.wav")
    with pytest.raises(UnreadableFileError, match="NaN"):
        read_audio(np.array([0.0, np.nan]), rate=16_000)
