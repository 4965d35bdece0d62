"""A user's own speech: five layouts give the same corpus; what cannot be used is counted with its place."""

import json

import pytest

from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError
from cubelet.datamodules import SpeechDataModule
from cubelet.datamodules.speech.formats import load_folder

TEXTS = {"train": ["Hello, world.", "Good morning!"], "dev": ["Good night"]}


def write_librispeech(root, write_sound):
    for split, texts in TEXTS.items():
        lines = []
        for n, text in enumerate(texts):
            write_sound(f"{root}/{split}/19/198/19-198-{n:04}.flac", 1.5 + n)
            lines.append(f"19-198-{n:04} {text.upper()}")
        (root / split / "19" / "198" / "19-198.trans.txt").write_text("\n".join(lines) + "\n")


def write_common_voice(root, write_sound):
    for split, texts in TEXTS.items():
        rows = ["client_id\tpath\tsentence\tup_votes"]
        for n, text in enumerate(texts):
            write_sound(f"{root}/clips/{split}{n}.mp3", 1.5 + n)
            rows.append(f"speaker\t{split}{n}.mp3\t{text}\t2")
        (root / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (root / "validated.tsv").write_text("client_id\tpath\tsentence\n")


def write_nemo(root, write_sound):
    for split, texts in TEXTS.items():
        rows = []
        for n, text in enumerate(texts):
            write_sound(f"{root}/audio/{split}{n}.wav", 1.5 + n)
            rows.append({"audio_filepath": f"audio/{split}{n}.wav", "text": text, "duration": 1.5 + n})
        (root / f"{split}_manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def write_pairs(root, write_sound):
    for split, texts in TEXTS.items():
        for n, text in enumerate(texts):
            write_sound(f"{root}/{split}/{n}.ogg", 1.5 + n).with_suffix(".txt").write_text(text + "\n")


@pytest.mark.parametrize("write", [write_librispeech, write_common_voice, write_nemo, write_pairs])
def test_each_layout_gives_the_same_corpus(tmp_path, write_sound, write):
    root = tmp_path / "corpus"
    root.mkdir()
    write(root, write_sound)
    corpus = load_folder(root, tmp_path / "cache")
    assert [u.text for u in corpus.train] == ["hello world", "good morning"]
    (split,) = corpus.held_out
    assert split.startswith("dev")
    assert [u.text for u in corpus.held_out[split]] == ["good night"]
    for n, utterance in enumerate(corpus.train):
        assert utterance.seconds == pytest.approx(1.5 + n, abs=0.15)
        assert len(utterance.read()) == pytest.approx(utterance.samples, abs=2500)


def test_a_datasets_folder_gives_the_same_corpus(tmp_path, write_sound):
    datasets = pytest.importorskip("datasets")
    tables = {}
    for split, texts in TEXTS.items():
        rows = [{"bytes": write_sound(f"x{n}.wav", 1.5 + n).read_bytes(), "path": None} for n in range(len(texts))]
        tables[split] = datasets.Dataset.from_dict({"audio": rows, "text": texts})
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "stored"))
    corpus = load_folder(tmp_path / "stored", tmp_path / "cache")
    assert [(u.text, u.seconds) for u in corpus.train] == [("hello world", 1.5), ("good morning", 2.5)]
    assert [u.text for u in corpus.held_out["dev"]] == ["good night"]


def test_without_a_held_out_split_one_text_in_ten_is_held_out_on_one_side_only(tmp_path, write_sound):
    for n in range(60):
        sound = write_sound(f"corpus/{n}.wav", 0.2)
        sound.with_suffix(".txt").write_text(f"text {n % 30}")
    corpus = load_folder(tmp_path / "corpus", tmp_path)
    train, held = ({u.text for u in rows} for rows in (corpus.train, corpus.held_out["texts"]))
    assert train
    assert held
    assert not train & held
    assert len(train | held) == 30


def test_what_cannot_be_used_is_reported_in_one_line_with_its_place(tmp_path, write_sound):
    write_sound("good.wav", 2.0)
    write_sound("short.wav", 0.1)
    cut = write_sound("cut.wav")
    cut.write_bytes(cut.read_bytes()[:1000])
    rows = [("good", "a good one"), ("good", "..."), ("short", "far too long for it"), ("cut", "x"), ("gone", "y")]
    for split in ("train", "dev"):
        lines = [json.dumps({"audio_filepath": f"{name}.wav", "text": text}) for name, text in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="leaves out") as caught:
        data = SpeechDataModule(str(tmp_path))
    (message,) = [str(w.message) for w in caught if "leaves out" in str(w.message)]
    for part in ("empty transcript (first: dev.jsonl:2)", "unreadable (first: dev.jsonl:4)", "missing", "2 × fewer"):
        assert part in message
    assert "\n" not in message
    assert [u.text for u in data.data.train] == ["a good one"]


def test_what_is_no_corpus_is_told_in_a_sentence(tmp_path, write_sound):
    with pytest.raises(MissingFileError, match="neither 'commands' nor 'prompts'"):
        load_folder(tmp_path / "nothing", tmp_path)
    with pytest.raises(ConfigError, match="holds no speech corpus"):
        load_folder(tmp_path, tmp_path)
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ConfigError, match="needs `path` and `sentence`"):
        load_folder(tmp_path / "x.tsv", tmp_path)
    (tmp_path / "x.jsonl").write_text('{"text": "no file"}\n')
    with pytest.raises(ConfigError, match=r"x.jsonl:1 is no line of a manifest"):
        load_folder(tmp_path / "x.jsonl", tmp_path)
    (tmp_path / "y.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(UnreadableFileError, match="not UTF-8"):
        load_folder(tmp_path / "y.jsonl", tmp_path)
