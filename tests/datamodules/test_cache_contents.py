"""What the cache holds is shown with its size, and removed when asked; nothing that is being built is."""

import numpy as np
import pytest

from cubelet.cli.main import main
from cubelet.datamodules import TextDataModule
from cubelet.datamodules.cache_contents import clean_cache, list_cache
from cubelet.datamodules.folder import lock


@pytest.fixture
def filled(text, cache):
    for kind in ("char", "byte"):
        TextDataModule(str(text), tokenizer=kind, context_length=16, cache_dir=str(cache))
    old = cache / "text" / "words-char-0123456789abcdef"
    old.mkdir()
    np.save(old / "train.npy", np.zeros(5000, np.uint8))  # as 0.1.0 left it
    (cache / "text" / "half-bpe-00.part").mkdir()
    (cache / "text" / "half-bpe-00.part" / "journal.json").write_text("{}")
    return cache


def test_all_is_listed_with_its_size_and_state(filled):
    entries = list_cache(filled)
    assert sorted(entry.state for entry in entries) == ["0.1.0", "unfinished", "whole", "whole"]
    assert entries[0].size == 5128
    for entry in entries:
        assert entry.size == sum(file.stat().st_size for file in entry.path.iterdir())
        assert entry.tokens == (1000 if entry.state == "whole" else 0)
    assert list_cache(filled / "nowhere") == []


def test_clean_removes_what_it_names_and_the_text_is_made_again(filled, text):
    assert [entry.path.name.split("-")[1] for entry in clean_cache(filled, ["words-byte-*"])] == ["byte"]
    assert len(list_cache(filled)) == 3
    assert len(clean_cache(filled)) == 3
    assert list_cache(filled) == []
    left = sorted(path.name for path in (filled / "text").rglob("*") if path.suffix != ".lock")
    assert left == ["index"]
    assert TextDataModule(str(text), context_length=16, cache_dir=str(filled))._train[0].train_tokens == 900


def test_what_is_being_built_stays(filled):
    with lock(filled / "text" / ".half-bpe-00.lock"):
        clean_cache(filled)
        assert [entry.path.name for entry in list_cache(filled)] == ["half-bpe-00.part"]
    clean_cache(filled)
    assert list_cache(filled) == []


def test_the_command_shows_and_cleans(filled, capsys):
    main(["data", "--cache_dir", str(filled)])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5
    assert "5.13 kB" in shown[0]
    assert shown[0].endswith("words-char-0123456789abcdef  (0.1.0)")
    assert shown[-1].endswith(f"in all, 4 corpora in {filled / 'text'}")
    main(["data", "--clean", "half-*", "--cache_dir", str(filled)])
    assert "removed, 1 corpora" in capsys.readouterr().out
    main(["data", "--clean", "--cache_dir", str(filled)])
    assert "removed, 3 corpora" in capsys.readouterr().out
