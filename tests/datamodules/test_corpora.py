"""Corpora: the presets' sizes, files, folders, and one clear sentence for each kind of bad input."""

import hashlib

import pytest

from cubelet.cli.errors import disk_fault
from cubelet.common.errors import UnreadableFileError
from cubelet.datamodules import Corpus
from cubelet.datamodules.corpora import HELD_OUT, TINY, load_corpus, open_corpus, tiny_shakespeare


def test_tiny_shakespeare_is_as_long_as_the_fields(cache):
    text = tiny_shakespeare(cache)
    assert (len(text), text.count("\n")) == (1_115_914, 40_000)  # char-rnn's input.txt: 1,115,394 and 40,000
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n")
    # Twelve lines past the field's end; its 65 characters but for the digit of a running title that it left in.
    assert text.endswith("\nMust be so too, if heed me; which to do\n")
    assert "\nThou let'st thy fortune sleep--die, rather; wink'st\nWhiles thou art waking.\n" in text[-500:]
    assert "".join(sorted(set(text))) == "\n !$&',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "3c375e2e941db198ebcbb5325e84bda3127ef61924684ae1bd350200a9e6fc9b"


def test_shakespeare_is_split_as_nanogpt_splits(cache):
    corpus, text = load_corpus("shakespeare", cache), tiny_shakespeare(cache)
    assert corpus.train == text[: int(len(text) * 0.9)]
    assert corpus.train + corpus.val == text


def test_plays_holds_out_four_whole_plays(cache):
    corpus = load_corpus("plays", cache)
    assert len(HELD_OUT) == 4
    assert 0.08 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < 0.12
    for line in (
        "Is this a dagger which I see before me,",
        "We are such stuff",
        "If music be the food of love, play on;",
    ):
        assert line in corpus.val
        assert line not in corpus.train
    assert "To be, or not to be: that is the question:" in corpus.train
    assert set(TINY) - set(HELD_OUT)
    assert set(corpus.val) <= set(corpus.train)


def test_a_file_is_split_by_characters(tmp_path, cache):
    path = tmp_path / "my text.txt"
    path.write_text("é" * 10 + "x" * 10, encoding="utf-8")
    corpus = load_corpus(str(path), cache, val_fraction=0.25)
    assert (corpus.train, corpus.val) == ("é" * 10 + "x" * 5, "x" * 5)
    assert load_corpus(path, cache, val_fraction=0.25).train == corpus.train


def test_a_folder_is_joined_in_the_order_of_paths(tmp_path, cache):
    files = {"b.txt": "two\n", "a/z.md": "one", "c.TXT": "three\n\n", ".hidden/x.txt": "no", "d.py": "no"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    corpus = load_corpus(tmp_path, cache, val_fraction=0.5, suffixes=[".txt", "md"], split="tail")
    assert corpus.train + corpus.val == "one\n\ntwo\n\nthree\n"
    corpus = load_corpus(tmp_path, cache, val_fraction=0.5, split="tail")
    assert corpus.train + corpus.val == "one\n\ntwo\n\nthree\n\nno\n"


def test_a_missing_file_is_named(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=f"no file or folder {tmp_path / 'absent.txt'}"):
        load_corpus(tmp_path / "absent.txt", cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder .*empty holds no file"):
        load_corpus(tmp_path / "empty", cache)
    (tmp_path / "empty" / "a.py").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no \.md or \.txt file to read \(1 of other suffixes \(\.py 1\)\)"):
        load_corpus(tmp_path / "empty", cache, suffixes=["md", "txt"])


@pytest.mark.parametrize(
    ("wrong", "hint"), [("shakespear", "did you mean 'shakespeare'"), ("Plays", "did you mean 'plays'")]
)
def test_an_unknown_preset_gets_a_suggestion(wrong, hint, cache):
    with pytest.raises(ValueError, match=f"corpus '{wrong}' is neither a preset.*{hint}"):
        load_corpus(wrong, cache)
    with pytest.raises(ValueError, match=r"neither a preset \(shakespeare, plays\)"):
        load_corpus("qqq", cache)


@pytest.mark.parametrize("data", [b"", b" \n\n"])
def test_an_empty_file_is_refused(tmp_path, cache, data):
    (tmp_path / "e.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"e\.txt is empty \({len(data)} characters"):
        load_corpus(tmp_path / "e.txt", cache)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_impossible_shares_are_refused(cache, fraction):
    with pytest.raises(ValueError, match=f"val_fraction is {fraction}"):
        load_corpus("shakespeare", cache, val_fraction=fraction)


def test_a_file_that_the_system_does_not_hand_out_is_an_error_of_reading(tmp_path, cache):
    (tmp_path / "memory.txt").symlink_to(
        "/proc/self/mem"
    )  # its first byte gives an input/output error, to root as well
    with pytest.raises(UnreadableFileError, match=r"memory\.txt cannot be read: Input/output error") as caught:
        load_corpus(tmp_path / "memory.txt", cache)
    assert disk_fault(caught.value) is None  # its own sentence is told, not one about the run's folder


def test_a_text_in_memory_is_a_corpus(cache):
    assert load_corpus(Corpus("x", "abc", "de"), cache) == Corpus("x", "abc", "de")


def test_what_is_no_corpus_is_refused(cache):
    with pytest.raises(ValueError, match="corpus is a int; give a name, a path, or a dataset"):
        open_corpus(5, cache)
