"""The cache: what lies in it, that it is found without reading, made once, whole or not at all, and never trusted
blindly."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from itertools import pairwise

import numpy as np
import pytest

from cubelet.common.errors import DiskError
from cubelet.datamodules import (
    Corpus,
    Settings,
    TextDataModule,
    build_tokenizer,
    default_cache,
    encoding,
    folder,
    prepare,
    sources,
    split,
    tokenize_corpora,
)
from cubelet.datamodules import build as build_module
from cubelet.datamodules.corpora import load_corpus, open_corpus
from tests.reference.data import slow_char_ids

CORPUS = Corpus("some/My Words.txt", "to be, or not to be:\n" * 30, "that is the question.\n" * 5)


def old(path, seconds=10):
    """Give a file a time that its cache trusts: one that was changed this moment may change again unseen."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def folders(cache):
    return sorted(path.name for path in (cache / "text").iterdir() if path.is_dir() and path.name != "index")


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("byte", None), ("bpe", 264)])
def test_files_are_the_texts_ids(cache, kind, size):
    done = prepare(CORPUS, kind, size, cache)
    train, val = (np.load(done.folder / f"{part}-00000.npy", mmap_mode="r") for part in ("train", "val"))
    assert done.tokenizer.decode(train) == CORPUS.train
    assert done.tokenizer.decode(val) == CORPUS.val
    assert (len(train), len(val)) == (done.train_tokens, done.val_tokens)
    assert done.train[:].tolist() == train.tolist()
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


def test_the_digest_is_that_of_0_1_0(cache):
    import hashlib

    expected = hashlib.sha256(CORPUS.train.encode() + b"\xff" + CORPUS.val.encode()).hexdigest()
    assert prepare(CORPUS, "byte", None, cache).sha256 == expected


# Any size: pieces, shards and processes change nothing.


@pytest.fixture
def many(tmp_path):
    """A folder of 40 small texts, some without a line's end, some with one long line."""
    root = tmp_path / "many"
    root.mkdir()
    draw = np.random.default_rng(0)
    for n in range(40):
        words = ["naïve", "to", "be", "or", "not", "ACGT" * int(draw.integers(1, 200)), "it's", "  ", "\n\n", "語"]
        text = " ".join(draw.choice(words, int(draw.integers(3, 60))))
        (root / f"{n:02}.txt").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("kind", "size"), [("char", None), ("byte", None), ("bpe", 300)])
@pytest.mark.parametrize("mode", ["tail", "documents"])
def test_tokens_of_small_pieces_are_those_of_the_whole_text(many, cache, kind, size, mode, monkeypatch):
    whole = load_corpus(many, cache, split=mode)
    monkeypatch.setattr(encoding, "CHARACTERS", 37)
    monkeypatch.setattr(build_module, "_STRETCH", 1000)  # lines up to sixteen times as long stay whole
    done = prepare(open_corpus(many, cache), kind, size, cache, split=mode, shard_tokens=301)
    assert len(done.train.files) > 3
    for part, text in ((done.train, whole.train), (done.val, whole.val)):
        assert part[:].tolist() == done.tokenizer.encode_array(text).tolist()
    assert done.tokenizer.sha256 == build_tokenizer(kind, whole.train + whole.val * (kind == "char"), size).sha256
    starts = [*done.train_documents.tolist(), done.train_tokens]
    texts = [done.tokenizer.decode(done.train[a:b]) for a, b in pairwise(starts)]
    assert "".join(texts) == whole.train
    files = {path.read_text(encoding="utf-8").strip("\n") for path in many.iterdir()}
    assert sum(text.strip("\n") in files for text in texts) >= len(texts) - (mode == "tail")


def test_processes_change_nothing(many, cache, tmp_path, monkeypatch):
    one = prepare(open_corpus(many, cache), "bpe", 300, cache, processes=1)
    monkeypatch.setattr(build_module.CorpusBuilder, "_processes", lambda self, characters: 3)
    monkeypatch.setattr(encoding, "CHARACTERS", 100)
    several = prepare(open_corpus(many, cache), "bpe", 300, tmp_path / "other", processes=3)
    assert several.train[:].tolist() == one.train[:].tolist()
    assert several.train_documents.tolist() == one.train_documents.tolist()
    assert several.sha256 == one.sha256


def test_a_large_text_is_learned_from_in_part_the_same_part_every_time(many, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "SAMPLE", 8000)
    monkeypatch.setattr(build_module, "_STRETCH", 100)
    whole = load_corpus(many, cache, split="tail")
    seen = []
    train = build_module.BPETokenizer.train
    monkeypatch.setattr(
        build_module.BPETokenizer, "train", lambda text, size: train(seen.append(list(text)) or seen[-1], size)
    )
    first = prepare(open_corpus(many, cache), "bpe", 280, cache, split="tail")
    again = prepare(open_corpus(many, cache), "bpe", 280, tmp_path / "other", split="tail")
    assert first.tokenizer == again.tokenizer
    assert seen[0] == seen[1]
    assert 6000 < sum(map(len, seen[0])) < 16_000 < len(whole.train) / 2
    at = 0
    for piece in seen[0]:  # in order, and from all of it
        at = whole.train.index(piece, at)
    assert at > len(whole.train) / 2


def test_end_tokens_stand_behind_documents_and_nothing_else_does(many, cache):
    done = prepare(open_corpus(many, cache), "char", None, cache, eos=True)
    eos = done.tokenizer.eos_id
    texts = [path.read_text(encoding="utf-8").strip("\n") for path in sorted(many.iterdir())]
    for part, starts in ((done.train, done.train_documents), (done.val, done.val_documents)):
        ids = part[:].tolist()
        assert [i + 1 for i, token in enumerate(ids) if token == eos] == [*starts.tolist()[1:], len(ids)]
        for a, b in zip(starts.tolist(), [*starts.tolist()[1:], len(ids)], strict=True):
            assert done.tokenizer.decode(ids[a : b - 1]) in texts


# Found without reading


def test_a_second_start_reads_nothing_and_makes_nothing(many, cache, monkeypatch):
    for path in many.iterdir():
        old(path)
    before = time.time()
    while time.time() - before < 0.15:  # the entries' own times have to be old enough, too
        time.sleep(0.05)
    first = prepare(open_corpus(many, cache), "bpe", 300, cache)
    monkeypatch.setattr(build_module, "scan", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(sources, "read_file", lambda *_: pytest.fail("read again"))
    second = prepare(open_corpus(many, cache), "bpe", 300, cache)
    assert (second.folder, second.sha256, second.tokenizer) == (first.folder, first.sha256, first.tokenizer)
    assert second.taken == first.taken


def test_a_touched_or_renamed_text_is_read_but_not_made_again(text, cache, monkeypatch):
    old(text)
    time.sleep(0.15)
    first = prepare(open_corpus(text, cache), "char", None, cache)
    monkeypatch.setattr(build_module, "encode_tasks", lambda *_: pytest.fail("made again"))
    old(text, 20)
    assert prepare(open_corpus(text, cache), "char", None, cache).folder == first.folder
    moved = text.rename(text.with_name("moved.txt"))
    assert prepare(open_corpus(moved, cache), "char", None, cache).folder == first.folder


def test_a_text_that_was_just_written_is_looked_at_again(text, cache):
    first = prepare(open_corpus(text, cache), "char", None, cache)
    about = text.stat()
    text.write_text(text.read_text()[::-1])
    os.utime(text, ns=(about.st_atime_ns, about.st_mtime_ns))  # the same size and time as before
    assert prepare(open_corpus(text, cache), "char", None, cache).sha256 != first.sha256


def test_folders_differ_with_text_split_and_tokenizer(cache):
    moved = Corpus(CORPUS.name, CORPUS.train + CORPUS.val[:1], CORPUS.val[1:])
    variants = [(CORPUS, "char", None), (CORPUS, "byte", None), (CORPUS, "bpe", 260), (CORPUS, "bpe", 261)]
    variants += [(moved, "char", None), (Corpus(CORPUS.name, CORPUS.train, "other"), "char", None)]
    made = {prepare(*variant, cache).folder for variant in variants}
    assert len(made) == 6
    assert {name.split("-char")[0] for name in folders(cache) if "-char-" in name} == {"my-words"}


# Whole or not at all


def test_a_build_that_fails_at_once_leaves_nothing_behind(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module.ShardWriter, "append", full)
    with pytest.raises(DiskError, match=r"cannot be written .*No space left on device.*cache_dir or \$CUBELET_CACHE"):
        prepare(CORPUS, "char", None, cache)
    assert folders(cache) == []
    monkeypatch.undo()
    assert prepare(CORPUS, "char", None, cache).folder.is_dir()


def test_too_small_a_disk_is_told_before_anything_is_written(cache, monkeypatch):
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 700))
    with pytest.raises(DiskError, match=r"need about 756 bytes in .*, where 700 bytes are free; make room"):
        prepare(CORPUS, "char", None, cache)
    assert folders(cache) == []


def build_slowly(cache, root, after):
    """Build in a process of its own that is stopped when so many tasks are done; gives the process."""
    fork = multiprocessing.get_context("fork")
    come = fork.Event()

    def work():
        encoding.CHARACTERS = 100
        build_module.COMMIT_BYTES = 1
        append, done = build_module.CorpusBuilder._append, []

        def slowly(self, arrays, journal, encoded):
            append(self, arrays, journal, encoded)
            done.append(encoded)
            if len(done) == after:
                come.set()
                time.sleep(60)

        build_module.CorpusBuilder._append = slowly
        prepare(open_corpus(root, cache), "bpe", 300, cache, processes=1)

    process = fork.Process(target=work)
    process.start()
    assert come.wait(60)
    return process


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_was_stopped_goes_on_where_it_was(many, cache, tmp_path, monkeypatch, by):
    process = build_slowly(cache, many, 20)
    os.kill(process.pid, by)
    process.join(30)
    (left,) = folders(cache)
    assert left.endswith(".part")
    kept = json.loads((cache / "text" / left / "journal.json").read_text())["journal"]["tasks"]
    assert kept == (20 if by == signal.SIGINT else 19)  # a kill loses what came behind the last entry
    monkeypatch.setattr(encoding, "CHARACTERS", 100)
    numbers = []
    encode = build_module.encode_tasks
    monkeypatch.setattr(
        build_module, "encode_tasks", lambda tasks, *rest: encode((numbers.append(t[0]) or t for t in tasks), *rest)
    )
    done = prepare(open_corpus(many, cache), "bpe", 300, cache, processes=1)
    assert numbers[0] == kept
    whole = prepare(open_corpus(many, cache), "bpe", 300, tmp_path / "other", processes=1)
    assert done.train[:].tolist() == whole.train[:].tolist()
    assert done.val[:].tolist() == whole.val[:].tolist()
    assert done.sha256 == whole.sha256
    assert done.characters_per_token == whole.characters_per_token
    assert folders(cache) == [done.folder.name]


def test_processes_that_encode_end_with_a_parent_that_is_killed(many, cache, tmp_path):
    fork = multiprocessing.get_context("fork")
    pids = fork.Queue()

    def work():
        encoding.CHARACTERS = 100
        encode = encoding.encode_task
        encoding.encode_task = lambda *task: (pids.put(os.getpid()), time.sleep(0.3), encode(*task))[-1]
        build_module.CorpusBuilder._processes = lambda self, characters: 3
        prepare(open_corpus(many, cache), "bpe", 300, cache)

    process = fork.Process(target=work)
    process.start()
    workers = {pids.get(timeout=60) for _ in range(9)}
    assert len(workers) == 3
    assert process.pid not in workers
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") and "Z" not in _state(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("locks", [True, False], ids=["locked", "no locks"])
def test_processes_that_start_together_agree(cache, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(folder, "fcntl", None)
    fork = multiprocessing.get_context("fork")
    together, results, built = fork.Barrier(4), fork.Queue(), fork.Value("i", 0)
    build = build_module.CorpusBuilder._encode

    def counting(*arguments):
        with built.get_lock():
            built.value += 1
        build(*arguments)

    monkeypatch.setattr(build_module.CorpusBuilder, "_encode", counting)

    def work():
        together.wait()
        done = prepare(CORPUS, "char", None, cache)
        results.put((str(done.folder), done.train[:].tolist()))

    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(answer == answers[0] for answer in answers)
    assert len(folders(cache)) == 1  # no half-built folder stays
    assert built.value == 1 or not locks


# Damage


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


HARM = {
    "cut": lambda f: os.truncate(f / "train-00000.npy", 400),
    "gone": lambda f: (f / "val-00000.npy").unlink(),
    "zeroed": lambda f: overwrite(f / "train-00000.npy", 128, bytes(300)),
    "ids beyond the vocabulary": lambda f: overwrite(f / "train-00000.npy", 200, b"\xff"),
    "another alphabet": lambda f: (f / "tokenizer.json").write_text('{"kind": "char", "alphabet": "abcdefgh"}'),
    "no tokenizer": lambda f: (f / "tokenizer.json").write_text('{"kind": "?"}'),
    "other lengths": lambda f: (f / "meta.json").write_text((f / "meta.json").read_text().replace("630", "631")),
    "empty description": lambda f: (f / "meta.json").write_text(""),
    "no checksums": lambda f: (f / "checks.npy").write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARM)
def test_damage_is_noticed_told_and_made_good(text, cache, harm):
    old(text)
    time.sleep(0.15)
    first = prepare(open_corpus(text, cache), "char", None, cache)
    expected = first.train[:].tolist()
    HARM[harm](first.folder)
    if harm in ("zeroed", "ids beyond the vocabulary"):  # even where the file's time was set back
        about = json.loads((first.folder / "meta.json").read_text())["arrays"]["train"][0]
        os.utime(first.folder / "train-00000.npy", ns=(about["times"][0], about["times"][0]))
    if harm == "other lengths" and '"631"' not in (first.folder / "meta.json").read_text():
        (first.folder / "meta.json").write_text((first.folder / "meta.json").read_text().replace("900", "901"))
    with pytest.warns(UserWarning, match=f"tokenized text in {first.folder} is damaged .*; it is made again"):
        again = prepare(open_corpus(text, cache), "char", None, cache)
    assert again.train[:].tolist() == expected
    assert folders(cache) == [again.folder.name]


def test_damage_between_the_blocks_that_are_looked_at_is_told_by_the_files_times(cache, monkeypatch):
    from cubelet.datamodules import shards

    monkeypatch.setattr(shards, "BLOCK", 8)
    monkeypatch.setattr(shards, "SAMPLE", 4)
    done = prepare(CORPUS, "char", None, cache)
    overwrite(done.folder / "train-00000.npy", 300, bytes(1))
    with pytest.warns(UserWarning, match="is not what was written, at byte 296"):
        assert prepare(CORPUS, "char", None, cache).tokenizer.decode(done.train[:]) == CORPUS.train


def test_a_copied_cache_is_compared_once_and_then_known(cache, tmp_path, monkeypatch):
    done = prepare(CORPUS, "char", None, cache)
    shutil.copytree(done.folder, tmp_path / "copy")  # new times
    compared = []
    compare = folder.open_files
    monkeypatch.setattr(folder, "open_files", lambda *a: compared.append(compare(*a)[1]) or compare(*a))
    assert folder.open_folder(tmp_path / "copy").train[:].tolist() == done.train[:].tolist()
    assert not any(compared)
    compared.clear()
    folder.open_folder(tmp_path / "copy")
    assert all(compared)


def test_a_cache_cut_while_it_is_read_is_an_error_not_a_crash(text, cache):
    data = TextDataModule(str(text), context_length=16, batch_size=4, cache_dir=str(cache))
    loader = data.train_dataloader()
    next(iter(loader))
    os.truncate(data.train_dataloader().windows.tokens.files[0].path, 200)
    with pytest.raises(OSError, match=r"train-00000\.npy ends at byte \d+, in the middle of its tokens"):
        list(loader)


# Settings


def test_an_empty_part_is_refused(cache):
    with pytest.raises(ValueError, match=r"leaves no validation text \(5 \+ 0 characters\)"):
        prepare(Corpus("x", "words", ""), "char", None, cache)
    assert folders(cache) == []


def test_several_corpora_share_a_tokenizer_learned_from_their_training_parts(cache):
    texts = [Corpus("a", "abab" * 99, "c"), Corpus("b", "xyxy" * 99, "z")]
    done = tokenize_corpora([text.source() for text in texts], Settings(), cache)
    assert done[0].tokenizer == done[1].tokenizer == build_tokenizer("char", "abcxyz")
    assert [one.tokenizer.decode(one.train[:]) for one in done] == [text.train for text in texts]


def test_documents_are_held_out_whole_and_close_to_the_share():
    lengths = np.random.default_rng(0).integers(1, 2000, 3000)
    held_out = split.choose_documents(lengths, 0.1)
    assert 0.099 < lengths[held_out].sum() / lengths.sum() <= 0.1
    assert abs(np.flatnonzero(held_out).mean() / 3000 - 0.5) < 0.05  # from everywhere
    assert split.choose_documents(np.array([5, 3, 9]), 0.1).tolist() == [False, True, False]


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
    with pytest.raises(DiskError, match=r"the cache .*file/cache cannot be written .*cache_dir or \$CUBELET_CACHE"):
        prepare(CORPUS, "char", None, tmp_path / "file" / "cache")


def test_a_text_that_changes_while_it_is_read_is_refused(text, cache, monkeypatch):
    encode = build_module.CorpusBuilder._encode

    def meanwhile(*arguments):
        encode(*arguments)
        text.write_text("something else")

    monkeypatch.setattr(build_module.CorpusBuilder, "_encode", meanwhile)
    with pytest.raises(OSError, match=r"words\.txt changed while it was read; start again"):
        prepare(open_corpus(text, cache), "char", None, cache)
