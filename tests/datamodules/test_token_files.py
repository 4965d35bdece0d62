"""Tokens that others made: read where they lie, checked once, refused where they are not what they seem."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest

from cubelet.common.errors import UserError
from cubelet.datamodules import TextDataModule, build_tokenizer, token_files
from tests.reference.token_files import write_megatron, write_nanogpt

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 900, 1000)]


def make(path, cache, **options):
    return TextDataModule(str(path), context_length=16, batch_size=4, cache_dir=str(cache), **options)


def training_tokens(data):
    return data._train[0].train[:].tolist()


def test_nanogpts_folder_and_single_file(tmp_path, cache):
    write_nanogpt(tmp_path / "train.bin", IDS)
    write_nanogpt(tmp_path / "val.bin", IDS[:100])
    data = make(tmp_path, cache)
    assert training_tokens(data) == IDS
    assert data._val[0].val[:].tolist() == IDS[:100]
    assert data.vocab_size == max(IDS) + 1
    assert [file.path for file in data._train[0].train.files] == [tmp_path / "train.bin"]  # nothing is copied
    assert len(list(data.train_dataloader())) == 15
    alone = make(tmp_path / "train.bin", cache, vocab_size=50_257)
    assert (training_tokens(alone), alone._val[0].val[:].tolist()) == (IDS[:900], IDS[900:])
    assert alone.vocab_size == 50_257
    apart = make(tmp_path / "train.bin", cache, val_corpus=str(tmp_path / "val.bin"))
    assert (training_tokens(apart), apart._val[0].val[:].tolist()) == (IDS, IDS[:100])
    assert apart.tokenizer.decode(apart.tokenizer.encode("5 6 7")) == "5 6 7 "


def test_processes_that_start_together_agree(tmp_path, cache):
    np.save(tmp_path / "tokens.npy", np.array(IDS * 50, dtype=np.uint16))
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(4), fork.Queue()

    def work():
        together.wait()
        results.put(make(tmp_path / "tokens.npy", cache).sha256)

    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len({results.get(timeout=10) for _ in processes}) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_nanogpt(tmp_path / "tokens.bin", IDS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"the cache .*/file/cache cannot be written .*name another folder"):
        make(tmp_path / "tokens.bin", tmp_path / "file/cache")


def test_npy(tmp_path, cache):
    np.save(tmp_path / "a.npy", np.array(IDS, dtype=np.int32))
    assert training_tokens(make(tmp_path / "a.npy", cache)) == IDS[:900]
    np.save(tmp_path / "b.npy", np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"b\.npy holds float64 of shape \(3, 3\)"):
        make(tmp_path / "b.npy", cache)
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"c\.npy is no whole \.npy file"):
        make(tmp_path / "c.npy", cache)


@pytest.mark.parametrize("code", [8, 4])
def test_megatron_with_documents(tmp_path, cache, code):
    documents = [IDS[:300], IDS[300:301], IDS[301:700], IDS[700:]]
    write_megatron(tmp_path / "set", documents, code)
    for name in ("set.bin", "set.idx"):
        data = make(tmp_path / name, cache, documents="crop", val_fraction=0.25)
        assert training_tokens(data) == IDS[:750]
        assert data._train[0].train_documents.tolist() == [0, 300, 301, 700]
        assert data._val[0].val_documents.tolist() == [0]
    (tmp_path / "set.bin").write_bytes((tmp_path / "set.bin").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"set\.bin has \d+ bytes, its index says"):
        make(tmp_path / "set.bin", cache)
    (tmp_path / "set.idx").write_bytes(b"MMIDIDX\x00\x00\x01")
    with pytest.raises(UserError, match=r"set\.idx is no index as Megatron writes"):
        make(tmp_path / "set.bin", cache)


def test_ids_have_to_fit_the_tokenizer(tmp_path, cache):
    write_nanogpt(tmp_path / "a.bin", IDS)
    with pytest.raises(UserError, match=rf"a\.bin holds the id {max(IDS)}, beyond a vocabulary of 300 tokens"):
        make(tmp_path / "a.bin", cache, vocab_size=300)
    bpe = build_tokenizer("bpe", "to be or not to be\n" * 9, 265)
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe.to_dict()["model"]))
    write_nanogpt(tmp_path / "b.bin", bpe.encode("to be or not to be\n" * 50))
    data = make(tmp_path / "b.bin", cache, tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.tokenizer.decode(training_tokens(data)).startswith("to be or not to be\nto be")
    (tmp_path / "c.bin").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"c\.bin has 3 bytes; nanoGPT's tokens are of two bytes each"):
        make(tmp_path / "c.bin", cache)


def test_files_are_read_through_once_until_they_change(tmp_path, cache, monkeypatch):
    write_nanogpt(tmp_path / "a.bin", IDS)
    state = make(tmp_path / "a.bin", cache, vocab_size=900).state_dict()
    times = []
    read = token_files._read_through
    monkeypatch.setattr(token_files, "_read_through", lambda *rest: times.append(1) or read(*rest))
    make(tmp_path / "a.bin", cache, vocab_size=900).load_state_dict(state)
    assert times == []
    time.sleep(0.02)
    write_nanogpt(tmp_path / "a.bin", IDS[::-1])
    with pytest.raises(UserError, match="trained on another text"):
        make(tmp_path / "a.bin", cache, vocab_size=900).load_state_dict(state)
    assert times == [1]
    os.truncate(tmp_path / "a.bin", 1000)
    assert len(training_tokens(make(tmp_path / "a.bin", cache))) == 450
