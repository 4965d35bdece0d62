"""A killed run sees, after it goes on, bit by bit what it would have seen: all sources, workers and ranks."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from cubelet.datamodules import TextDataModule
from tests.reference.token_files import write_megatron, write_nanogpt

LETTERS = np.random.default_rng(0).integers(97, 123, 4000)
TEXT = "".join(map(chr, LETTERS))


def write_sources(root):
    for n in range(40):
        (root / "folder").mkdir(exist_ok=True)
        (root / "folder" / f"{n}.txt").write_text(TEXT[n * 90 : n * 90 + 20 + n])
    (root / "text.txt").write_text(TEXT)
    rows = [json.dumps({"text": TEXT[n * 50 : n * 50 + 50]}) + "\n" for n in range(80)]
    (root / "rows.jsonl").write_text("".join(rows))
    write_nanogpt(root / "tokens.bin", LETTERS.tolist())
    write_megatron(root / "megatron", [LETTERS[n * 100 : n * 100 + 100].tolist() for n in range(40)])
    np.save(root / "tokens.npy", LETTERS.astype(np.int32))


SOURCES = {
    "text": ("text.txt", {}),
    "bpe": ("text.txt", {"tokenizer": "bpe", "vocab_size": 270}),
    "folder": ("folder", {}),
    "folder, packed": ("folder", {"documents": "pack", "eos": True}),
    "folder, cropped": ("folder", {"documents": "crop"}),
    "rows": ("rows.jsonl", {"documents": "crop", "eos": True}),
    "nanogpt": ("tokens.bin", {}),
    "npy": ("tokens.npy", {}),
    "megatron": ("megatron.idx", {"documents": "pack"}),
    "mixture": ({"text.txt": 0.7, "folder": 0.3}, {"documents": "pack"}),
    "dataset": ("saved", {"text_field": "body"}),
}


def make(root, name, rank=0, world_size=1, **more):
    corpus, options = SOURCES[name]
    if name == "dataset" and not (root / "saved").exists():
        rows = [TEXT[n * 50 : n * 50 + 50] for n in range(80)]
        pytest.importorskip("datasets").Dataset.from_dict({"body": rows}).save_to_disk(root / "saved")
    named = str(root / corpus) if isinstance(corpus, str) else {str(root / key): corpus[key] for key in corpus}
    options = {"context_length": 12, "batch_size": 4, "cache_dir": str(root / "cache"), **options, **more}
    data = TextDataModule(named, **options)
    data._place = lambda: (rank, world_size)
    return data


def batches(loader, count):
    """So many batches as plain data, over the ends of epochs; and the loader's state behind each."""
    while count > 0:
        for batch in loader:
            yield {key: value.tolist() for key, value in batch.items()}, loader.state_dict()
            count -= 1
            if not count:
                return


# Workers get nothing but the numbers of windows, of which there are three kinds.
CASES = [(name, 0) for name in SOURCES] + [(name, 2) for name in ("text", "folder, cropped", "mixture")]


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_after_a_kill_the_rest_is_what_it_would_have_been(tmp_path, name, workers):
    write_sources(tmp_path)
    whole = [batch for batch, _ in batches(make(tmp_path, name).train_dataloader(), 150)]
    assert len({str(batch) for batch in whole}) > 130  # over several epochs, all different
    log = tmp_path / "log.jsonl"

    def train():
        with log.open("w") as file:
            for batch, state in batches(make(tmp_path, name, num_workers=workers).train_dataloader(), 150):
                file.write(json.dumps([batch, state]) + "\n")
                file.flush()
                time.sleep(0.002)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    while not log.exists() or log.read_bytes().count(b"\n") < 60:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 60 <= len(lines) < 150
    assert [batch for batch, _ in lines] == whole[: len(lines)]
    again = make(tmp_path, name, num_workers=workers)
    loader = again.train_dataloader()
    loader.load_state_dict(lines[-1][1])
    assert [batch for batch, _ in batches(loader, 150 - len(lines))] == whole[len(lines) :]


@pytest.mark.parametrize("name", SOURCES)
def test_two_ranks_see_together_what_one_sees_and_go_on_from_its_state(tmp_path, name, recwarn):
    write_sources(tmp_path)
    alone = make(tmp_path, name).train_dataloader()
    whole = list(batches(alone, 40))
    states = [state for _, state in whole]
    for begin in (0, 13):
        parts = []
        for rank in range(2):
            loader = make(tmp_path, name, rank, 2, batch_size=2).train_dataloader()
            if begin:
                loader.load_state_dict(states[begin - 1])
            parts.append([batch for batch, _ in batches(loader, 40 - begin)])
        for (batch, _), first, second in zip(whole[begin:], *parts, strict=True):
            assert {key: first[key] + second[key] for key in batch} == batch
    assert not [w for w in recwarn if "order of the training data" in str(w.message)]


def test_from_one_rank_to_two_with_other_batches_is_told(tmp_path):
    write_sources(tmp_path)
    state = next(batches(make(tmp_path, "mixture").train_dataloader(), 1))[1]
    with pytest.warns(UserWarning, match=r"order of the training data changed .*global_batch 4 → 8"):
        make(tmp_path, "mixture", 0, 2).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize("name", ["text", "folder", "rows", "nanogpt", "mixture"])
def test_a_changed_file_is_refused(tmp_path, name):
    write_sources(tmp_path)
    state = json.loads(json.dumps(make(tmp_path, name).state_dict()))
    make(tmp_path, name).load_state_dict(state)
    changed = {"folder": "folder/7.txt", "rows": "rows.jsonl", "nanogpt": "tokens.bin"}.get(name, "text.txt")
    data = (tmp_path / changed).read_bytes()
    middle = data.rindex(b"a", 0, len(data) // 2) if name != "folder" else 5
    (tmp_path / changed).write_bytes(data[:middle] + b"b" + data[middle + 1 :])
    with pytest.raises(ValueError, match="trained on another text"):
        make(tmp_path, name).load_state_dict(state)
