"""Word borders: where the sound itself begins and ends, from characters that lie somewhere near it."""

import numpy as np
import pytest
import torch

from cubelet.models.word_borders import find_borders

HOP = 160


def splice(*parts, noise=0.0, seed=0):
    """A wave of sounds (True) and silences (False) of so many hops, and where the sounds lie."""
    draw = torch.Generator().manual_seed(seed)
    waves, borders, place = [], [], 0
    for is_sound, hops in parts:
        wave = 0.3 * torch.randn(hops * HOP, generator=draw) if is_sound else torch.zeros(hops * HOP)
        waves.append(wave)
        if is_sound:
            borders.append((place, place + hops))
        place += hops
    wave = torch.cat(waves)
    return wave + noise * torch.randn(len(wave), generator=draw), borders


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("shift", [-8, 0, 8])
def test_borders_are_those_of_the_sounds_even_where_characters_lie_two_states_away(noise, shift):
    wave, borders = splice((0, 20), (1, 30), (0, 15), (1, 25), (0, 40), (1, 35), (0, 30), noise=noise)
    spans = [(first + 6 + shift, last - 6 + shift) for first, last in borders]
    found = find_borders(wave, spans)
    for one, other in zip(found, borders, strict=True):
        assert np.abs(np.subtract(one, other)).max() <= 1


def test_the_closure_of_a_plosive_is_inside_its_word_where_a_pause_follows():
    wave, _ = splice((0, 20), (1, 20), (0, 8), (1, 6), (0, 30), (1, 30), (0, 20))
    for last in (38, 50):  # CTC's last character before the closure, or on the burst
        assert find_borders(wave, [(24, last), (90, 110)]) == [(20, 54), (84, 114)]
    # Where no quiet run is as long as a pause, the longest one parts the words.
    wave, _ = splice((0, 20), (1, 20), (0, 5), (1, 6), (0, 9), (1, 30), (0, 20))
    assert find_borders(wave, [(24, 36), (66, 80)]) == [(20, 51), (60, 90)]


def test_a_sound_between_two_pauses_belongs_to_neither_word():
    wave, borders = splice((0, 20), (1, 30), (0, 20), (1, 10), (0, 20), (1, 30), (0, 20))
    assert find_borders(wave, [(26, 44), (106, 124)]) == [borders[0], borders[2]]


def test_words_without_a_pause_meet_at_the_quietest_place():
    wave, _ = splice((1, 60))
    wave[30 * HOP : 31 * HOP] *= 0.3
    assert find_borders(wave, [(10, 20), (40, 50)]) == [(8, 30), (30, 52)]


def test_words_whose_characters_all_lie_in_one_pause_still_follow_each_other():
    wave, _ = splice((1, 20), (0, 60), (1, 20))
    found = find_borders(wave, [(24, 28), (36, 36), (44, 52), (60, 84)])
    flat = [border for span in found for border in span]
    assert flat == sorted(flat)
    assert all(start < end for start, end in found)


@pytest.mark.parametrize("samples", [1, 100, 800, 5_000])
def test_short_silent_and_empty_sounds_have_borders_inside(samples):
    assert find_borders(torch.zeros(samples), []) == []
    hops = max(1, samples // HOP)
    for wave in (torch.zeros(samples), torch.randn(samples)):
        ((start, end),) = find_borders(wave, [(0, 4 * ((hops - 1) // 4))])
        assert 0 <= start < end <= hops


@pytest.mark.parametrize("pause", [(0.0, 0.0), (0.3, 0.1)])
def test_random_spans_never_overlap(pause):
    draw = np.random.default_rng(0)
    for seed in range(150):
        lengths = draw.integers(1, 40, 12)
        wave, _ = splice(*((n % 2, int(length)) for n, length in enumerate(lengths)), seed=seed)
        wave += pause[1] * (wave == 0) * (draw.random() < pause[0])  # some rows have no quiet run
        states = np.sort(draw.choice(len(wave) // HOP // 4, 2 * min(5, len(wave) // HOP // 10), replace=False))
        spans = [(4 * int(a), 4 * int(b)) for a, b in zip(states[::2], states[1::2], strict=True)]
        found = find_borders(wave, spans)
        flat = [border for span in found for border in span]
        assert flat == sorted(flat), (seed, spans, found)
        assert all(start < end for start, end in found)
        assert flat[0] >= 0
        assert flat[-1] <= len(wave) // HOP
