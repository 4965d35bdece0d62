"""Data: real text as resumable batches. `TextDataModule` is what configs name; the rest is what it is made of."""

from .corpora import PRESETS, Corpus, load_corpus
from .loader import TrainingLoader, WindowDataset, WindowLoader
from .prepare import Prepared, default_cache, prepare
from .sampler import TrainingWindows, ValidationWindows, training_offsets
from .speech import SpeechDataModule
from .synthetic import SyntheticDataModule
from .text import TextDataModule
from .tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    build_tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "PRESETS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "Prepared",
    "SpeechDataModule",
    "SyntheticDataModule",
    "TextDataModule",
    "Tokenizer",
    "TrainingLoader",
    "TrainingWindows",
    "ValidationWindows",
    "WindowDataset",
    "WindowLoader",
    "build_tokenizer",
    "default_cache",
    "load_corpus",
    "prepare",
    "tokenizer_from_dict",
    "training_offsets",
]
