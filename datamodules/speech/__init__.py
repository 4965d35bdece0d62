"""Speech: sounds and their texts. `SpeechDataModule` is what configs name; the rest is what it is made of."""

from .audio import SAMPLE_RATE, audio_samples, read_audio
from .datamodule import SpeechDataModule, collate_speech, pad_waves
from .tokenizer import BLANK, BOS, EOS, SpeechTokenizer, normalize_text
from .utterance import SpeechCorpus, Utterance

__all__ = [
    "BLANK",
    "BOS",
    "EOS",
    "SAMPLE_RATE",
    "SpeechCorpus",
    "SpeechDataModule",
    "SpeechTokenizer",
    "Utterance",
    "audio_samples",
    "collate_speech",
    "normalize_text",
    "pad_waves",
    "read_audio",
]
