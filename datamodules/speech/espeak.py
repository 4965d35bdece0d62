"""The eSpeak NG synthesiser through ctypes: text in, samples out, byte-identical from a seed.

The library is the one in the package `espeakng-loader` (extra `speech`; GPL-3, loaded at run time, nothing of it is
copied here). Its voices waver by counters that survive from one utterance to the next, and neither
`espeak_ng_SetRandSeed` nor `espeak_Terminate` resets them. So the library is unloaded after every utterance: loading it
again takes half a millisecond, a tenth of the synthesis, and an utterance then depends on its own arguments alone.
"""

from __future__ import annotations

import _ctypes
import ctypes
from typing import Any

import numpy as np

from cubelet.common.errors import ConfigError
from cubelet.common.optional_imports import import_optional

ESPEAK_RATE = 22_050
_SYNCHRONOUS, _CHARACTERS, _UTF8 = 2, 1, 1
_SPEED, _PITCH, _PITCH_RANGE, _WORD_GAP = 1, 3, 4, 7
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def synthesize(
    text: str,
    voice: str,
    *,
    speed: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    word_gap: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Return the sound of a text: (n,) int16 at 22,050 Hz.

    Args:
        text: what is said.
        voice: a file of eSpeak's voices and a variant, as `gmw/en-US+f2`.
        speed: words a minute.
        pitch, pitch_range: 0 … 99.
        word_gap: pause between words, in units of 10 ms (at the default speed; less where speech is faster).
        seed: of the noise in breath and flutter.

    Raises:
        ConfigError: eSpeak has no such voice, or cannot start.
    """
    loader: Any = import_optional("espeakng_loader", "speech")
    library = ctypes.CDLL(loader.get_library_path())
    parts: list[bytes] = []

    def keep(samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _CALLBACK(keep)
    try:
        if library.espeak_Initialize(_SYNCHRONOUS, 200, loader.get_data_path().encode(), 0) != ESPEAK_RATE:
            raise ConfigError(f"eSpeak did not start with its data in {loader.get_data_path()}")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ConfigError(f"eSpeak has no voice {voice!r}; one is a file and a variant, as 'gmw/en-US+f2'")
        prosody = {_SPEED: speed, _PITCH: pitch, _PITCH_RANGE: pitch_range, _WORD_GAP: word_gap}
        for parameter, value in prosody.items():
            library.espeak_SetParameter(parameter, int(value), 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed & 0x7FFFFFFF))
        data = text.encode() + b"\0"
        library.espeak_Synth(data, len(data), 0, _CHARACTERS, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        _unload(library)
    return np.frombuffer(b"".join(parts), dtype=np.int16)


def _unload(library: ctypes.CDLL) -> None:
    close = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # pyright: ignore[reportAttributeAccessIssue]
    close(library._handle)
