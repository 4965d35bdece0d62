"""What Lightning trains, and the command line."""

from .language_model import LanguageModel

__all__ = ["LanguageModel"]
