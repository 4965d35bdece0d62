"""The cache: what lies in it, that it is made once, whole or not at all, and told apart by content."""

import json
import multiprocessing

import numpy as np
import pytest

from cubelet.datamodules import Corpus, build_tokenizer, default_cache, prepare
from cubelet.datamodules import prepare as prepare_function
from cubelet.datamodules.prepare import text_sha256
from tests.reference.data import slow_char_ids

CORPUS = Corpus("some/My Words.txt", "to be, or not to be:\n" * 30, "that is the question.\n" * 5)


@pytest.fixture
def module(monkeypatch):
    """The module behind the function of the same name."""
    import importlib

    return importlib.import_module("cubelet.datamodules.prepare")


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("byte", None), ("bpe", 264)])
def test_files_are_the_texts_ids(cache, kind, size):
    done = prepare(CORPUS, kind, size, cache)
    train, val = (np.load(done.folder / f"{part}.npy", mmap_mode="r") for part in ("train", "val"))
    assert isinstance(train, np.memmap)
    assert done.tokenizer.decode(train) == CORPUS.train
    assert done.tokenizer.decode(val) == CORPUS.val
    assert (len(train), len(val)) == (done.train_tokens, done.val_tokens)
    assert train.dtype == (np.uint16 if kind == "bpe" else np.uint8)
    if kind == "char":
        assert train.tolist() == slow_char_ids(CORPUS.train, CORPUS.train + CORPUS.val)


def test_merges_are_learned_from_the_training_text_alone_but_the_alphabet_is_whole(cache):
    corpus = Corpus("x", CORPUS.train, "zyx zyx zyx\n" * 500)
    assert prepare(corpus, "bpe", 264, cache).tokenizer == build_tokenizer("bpe", corpus.train, 264)
    assert prepare(corpus, "char", None, cache).tokenizer == build_tokenizer("char", corpus.train + corpus.val)


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("byte", None), ("bpe", 264)])
def test_characters_per_token_counts_the_targets(cache, kind, size):
    corpus = Corpus("x", CORPUS.train, "that is the question, éé")
    done = prepare(corpus, kind, size, cache)
    ids = done.tokenizer.encode(corpus.val)
    assert done.characters_per_token == pytest.approx(len(done.tokenizer.decode(ids[1:])) / (len(ids) - 1))
    assert (done.characters_per_token == 1) == (kind == "char")


def test_second_time_nothing_is_made(cache, module, monkeypatch):
    first = prepare(CORPUS, "bpe", 264, cache)
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built twice"))
    second = prepare(CORPUS, "bpe", 264, cache)
    assert (second.folder, second.sha256, second.tokenizer) == (first.folder, first.sha256, first.tokenizer)
    assert second.characters_per_token == first.characters_per_token


def test_folders_differ_with_text_split_and_tokenizer(cache):
    moved = Corpus(CORPUS.name, CORPUS.train + CORPUS.val[:1], CORPUS.val[1:])
    variants = [(CORPUS, "char", None), (CORPUS, "byte", None), (CORPUS, "bpe", 260), (CORPUS, "bpe", 261)]
    variants += [(moved, "char", None), (Corpus(CORPUS.name, CORPUS.train, "other"), "char", None)]
    folders = {prepare(*variant, cache).folder for variant in variants}
    assert len(folders) == 6
    assert {folder.name.split("-char")[0] for folder in folders if "-char-" in folder.name} == {"my-words"}
    assert text_sha256(moved) != text_sha256(CORPUS)


def test_a_failed_build_leaves_nothing_behind(cache, module, monkeypatch):
    monkeypatch.setattr(module.np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        RuntimeError, match=r"cannot be written .*No space left on device.*cache_dir or \$CUBELET_CACHE"
    ):
        prepare(CORPUS, "char", None, cache)
    assert [path.name for path in (cache / "text").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert prepare(CORPUS, "char", None, cache).folder.is_dir()


@pytest.mark.parametrize("locks", [True, False], ids=["locked", "no locks"])
def test_processes_that_start_together_agree(cache, module, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(module, "fcntl", None)
    fork = multiprocessing.get_context("fork")
    together, results, built = fork.Barrier(4), fork.Queue(), fork.Value("i", 0)
    build = module._build

    def counting(*arguments):
        with built.get_lock():
            built.value += 1
        build(*arguments)

    monkeypatch.setattr(module, "_build", counting)

    def work():
        together.wait()
        done = prepare_function(CORPUS, "char", None, cache)
        results.put((str(done.folder), np.load(done.folder / "train.npy").tolist()))

    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(answer == answers[0] for answer in answers)
    assert len([path for path in (cache / "text").iterdir() if path.is_dir()]) == 1  # no half-built folder stays
    assert built.value == 1 or not locks


@pytest.mark.parametrize("harm", ["cut", "gone", "garbled"])
def test_a_damaged_folder_is_named(cache, harm):
    folder = prepare(CORPUS, "char", None, cache).folder
    if harm == "cut":
        np.save(folder / "val.npy", np.zeros(3, dtype=np.uint8))
    elif harm == "gone":
        (folder / "train.npy").unlink()
    else:
        (folder / "tokenizer.json").write_text(json.dumps({"kind": "?"}))
    with pytest.raises(RuntimeError, match=f"prepared text in {folder} is damaged .*delete that folder"):
        prepare(CORPUS, "char", None, cache)


def test_an_empty_part_is_refused(cache):
    with pytest.raises(ValueError, match=r"leaves no validation text \(5 \+ 0 characters\)"):
        prepare(Corpus("x", "words", ""), "char", None, cache)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CUBELET_CACHE", str(tmp_path / "a"))
    assert default_cache() == tmp_path / "a"
    monkeypatch.delenv("CUBELET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache() == tmp_path / "b" / "cubelet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "cubelet"


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeError, match=r"the cache .*file/cache cannot be written .*cache_dir or \$CUBELET_CACHE"):
        prepare(CORPUS, "char", None, tmp_path / "file" / "cache")
