"""What Lightning trains."""

from .language_model import LanguageModel
from .speech_recognizer import SpeechRecognizer

__all__ = ["LanguageModel", "SpeechRecognizer"]
