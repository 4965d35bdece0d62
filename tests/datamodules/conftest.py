"""Small texts and caches of their own for the tests of the data room."""

from pathlib import Path

import pytest

WORDS = "the quick brown fox; jumps over a lazy dog, and then? it sleeps.\n"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """1,000 characters without a period, so that windows tell where they come from."""
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{i * i} {WORDS[i % 60 :][: 3 + i % 5]}" for i in range(200))[:1000], encoding="utf-8")
    return path
