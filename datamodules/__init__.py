"""Data: real text as resumable batches. `TextDataModule` is what configs name; the rest is what it is made of."""

from .corpora import PRESETS, Corpus, load_corpus
from .folder import Settings, TokenizedCorpus
from .loader import TrainingLoader, WindowDataset, WindowLoader
from .resumable_loader import ResumableLoader
from .sampler import TrainingWindows, ValidationWindows, training_offsets
from .speech import SpeechDataModule
from .synthetic import SyntheticDataModule
from .text import TextDataModule
from .token_cache import default_cache, prepare, tokenize_corpora
from .tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    build_tokenizer,
    tokenizer_from_dict,
)

Prepared = TokenizedCorpus  # its name in 0.1.0

__all__ = [
    "PRESETS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "Prepared",
    "ResumableLoader",
    "Settings",
    "SpeechDataModule",
    "SyntheticDataModule",
    "TextDataModule",
    "TokenizedCorpus",
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
    "tokenize_corpora",
    "tokenizer_from_dict",
    "training_offsets",
]
