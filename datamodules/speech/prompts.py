"""The corpus `prompts`: recorded telephone prompts of Asterisk, read where Debian's packages put them.

Five languages, one voice each, 8 kHz; CC-BY-SA, so they are read and never copied. Held out is one text in ten, by its
hash, so that a sentence that was recorded twice stands on one side only.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cubelet.common.checks import check_choice
from cubelet.common.errors import MissingFileError, UnreadableFileError

from .audio import audio_samples
from .formats import divide
from .tokenizer import normalize_text
from .utterance import SpeechCorpus, Utterance, file_place

ROOT = Path("/usr/share")
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}


def load_prompts(languages: Sequence[str] = ("en",), root: Path = ROOT) -> SpeechCorpus:
    """Return the prompts of some languages.

    Args:
        languages: of `en`, `es`, `fr`, `it`, `ru`.
        root: what Debian's packages call /usr/share.

    Raises:
        MissingFileError: a package is not installed; with the line that installs it.
    """
    splits: dict[str, list[Utterance]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for language in languages:
        check_choice("languages", language, VOICES)
        voice = root / "asterisk" / "sounds" / VOICES[language]
        table = root / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        if not voice.is_dir() or not table.is_file():
            missing = " ".join(f"asterisk-core-sounds-{x} asterisk-core-sounds-{x}-wav" for x in languages)
            raise MissingFileError(
                f"corpus prompts needs {voice} and {table}: sudo apt-get install --no-install-recommends {missing}"
            )
        for number, line in enumerate(gzip.decompress(table.read_bytes()).decode("utf-8-sig").splitlines(), 1):
            name, colon, text = line.partition(":")
            place = file_place(table, number)
            if line.startswith(";") or not colon:
                continue
            # Sounds that are not speech stand in brackets: [ascending tones].
            text = "" if "[" in text or "(" in text or "<" in text else normalize_text(text)
            path = voice / f"{name.strip()}.wav"
            if not text:
                left_out["no speech, or with remarks"].append(place)
                continue
            try:
                samples = audio_samples(path)
            except (MissingFileError, UnreadableFileError):
                left_out["missing or unreadable"].append(place)
                continue
            splits[language].append(Utterance(text, samples, str(path), speaker=VOICES[language], place=place))
    return divide("prompts", splits, left_out)
