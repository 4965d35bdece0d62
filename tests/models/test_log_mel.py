"""Log-mel frames: Whisper's, and the same for a row whatever stands beside or behind it."""

import copy

import numpy as np
import pytest
import torch

from cubelet.models.log_mel import LogMel, SpecAugment, hertz_to_mel, mel_filters, mel_to_hertz
from tests.reference.speech import slaney_mel


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_frames_are_those_of_whisper():
    transformers = pytest.importorskip("transformers")
    silence = torch.zeros(300)  # Whisper reflects the wave at its ends; a reflection of silence is silence
    wave = torch.cat([silence, noise(41_000), silence])
    theirs = transformers.WhisperFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    ours, counts = LogMel()(wave[None], torch.tensor([len(wave)]))
    expected = theirs.input_features[0].T[: counts[0]]
    assert (ours[0] - expected).abs().max() < 1e-5


def test_the_mel_scale_is_slaneys_and_filters_have_unit_area():
    hertz = torch.tensor([0.0, 440.0, 999.0, 1000.0, 4000.0, 8000.0], dtype=torch.float64)
    torch.testing.assert_close(hertz_to_mel(hertz), torch.tensor([slaney_mel(h) for h in hertz.tolist()]).double())
    torch.testing.assert_close(mel_to_hertz(hertz_to_mel(hertz)), hertz)
    area = mel_filters(80, 4096, 16_000).sum(0) * 16_000 / 4096
    torch.testing.assert_close(area, torch.ones(80, dtype=torch.float64), atol=0.03, rtol=0)


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
def test_a_row_does_not_depend_on_its_neighbours_or_padding(filler):
    waves, lengths = noise(3, 9_000), torch.tensor([9_000, 4_321, 801])
    for row, length in zip(waves, lengths, strict=True):
        row[length:] = filler
    waves[0] *= 100  # a loud neighbour
    frames, counts = LogMel()(waves, lengths)
    assert counts.tolist() == [56, 27, 5]
    for wave, length, row, count in zip(waves, lengths, frames, counts, strict=True):
        alone, _ = LogMel()(wave[None, :length], length[None])
        torch.testing.assert_close(row[:count], alone[0], atol=1e-6, rtol=0)
        assert not row[count:].any()


def test_the_shortest_sound_is_a_frame_and_silence_is_finite():
    frames, counts = LogMel()(torch.zeros(2, 1), torch.tensor([1, 0]))
    assert frames.shape == (2, 1, 80)
    assert counts.tolist() == [1, 1]
    assert frames.isfinite().all()


def test_tables_survive_meta_and_bfloat16_and_are_no_weights():
    with torch.device("meta"):
        module = LogMel()
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    wave, length = noise(1, 4_000), torch.tensor([4_000])
    expected = LogMel()(wave, length)[0]
    torch.testing.assert_close(module(wave, length)[0], expected)
    assert not LogMel().state_dict()
    torch.testing.assert_close(copy.deepcopy(module)(wave, length)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(wave, length)[0], expected)


def test_masks_hide_bands_inside_each_row_and_only_in_training():
    torch.manual_seed(0)
    frames, counts = torch.ones(200, 50, 20), torch.full((200,), 50)
    counts[::2] = 10
    hidden = SpecAugment(time_masks=1, time_width=0.5, mel_masks=1, mel_width=5).train()(frames, counts) == 0
    rows = hidden.all(2)
    assert rows.sum(1).max() <= 26
    assert not rows[::2, 10:].any()
    assert rows.float().mean() > 0.05
    columns = hidden.all(1).sum(1)
    assert 0 < columns.max() <= 6
    assert not (SpecAugment().eval()(frames, counts) == 0).any()
    assert not (SpecAugment(time_masks=0, mel_masks=0).train()(frames, counts) == 0).any()


@pytest.mark.parametrize("name", ["mels", "hop", "window"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} 0 must be at least 1"):
        LogMel(**{name: 0})
    assert np.isfinite(LogMel().filters.numpy()).all()
