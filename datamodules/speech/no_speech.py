"""Items without speech, so that a model learns to stay silent: silence, noise, hum, clicks, from 50 ms on."""

from __future__ import annotations

import numpy as np

from .audio import SAMPLE_RATE
from .commands import coloured_noise


def make_no_speech(seed: int, samples: int) -> np.ndarray:
    """Return (samples,) float32 of one kind of sound that no text belongs to; a pure function of the arguments.

    Args:
        seed: of the kind, the level and the noise.
        samples: length at 16 kHz, at least 1.
    """
    draw = np.random.default_rng(seed)
    kind = draw.integers(5)
    level = 10 ** draw.uniform(-4, -0.5)
    if kind == 0:
        return np.zeros(samples, dtype=np.float32)
    if kind == 1:  # a hum and its harmonics
        phase = 2 * np.pi * draw.uniform(45, 400) * np.arange(samples) / SAMPLE_RATE
        wave = np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.1 * draw.standard_normal(samples)
        return (level * wave / 1.6).clip(-1, 1).astype(np.float32)
    if kind == 2:  # clicks in silence
        wave = np.zeros(samples, dtype=np.float32)
        wave[draw.integers(samples, size=draw.integers(1, 6))] = draw.uniform(-1, 1)
        return wave
    wave = level * coloured_noise(draw, samples)
    if kind == 3:  # noise that swells
        wave = wave * np.sin(np.linspace(0, np.pi, samples, dtype=np.float32))
    return wave.clip(-1, 1).astype(np.float32)
