"""Corpora as people have them: each kind of file works, or is one sentence with file and byte."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile

import pytest

from cubelet.common.errors import ConfigError, UnreadableFileError, UserError
from cubelet.datamodules import TextDataModule, text_files
from cubelet.datamodules.corpora import load_corpus, open_corpus

TEXT = "First line, naïve — 語😀.\nSecond line.\n" * 30


def read(path, cache, **options):
    corpus = load_corpus(path, cache, split="tail", **options)
    return corpus.train + corpus.val


def write_zstd(path, data):
    arrow = pytest.importorskip("pyarrow")
    with arrow.CompressedOutputStream(arrow.OSFile(str(path), "w"), "zstd") as stream:
        stream.write(data)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
    ],
    ids=["utf-8", "crlf", "cr", "bom", "utf-16", "utf-16-be", "utf-32", "utf-16 crlf"],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress], ids=["plain", "gz", "xz", "bz2"])
@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_one_text_whatever_it_is_wrapped_in(tmp_path, cache, monkeypatch, data, pack, piece):
    monkeypatch.setattr(text_files, "BYTES", piece)
    (tmp_path / "text").write_bytes(pack(data))  # told by its first bytes, not by its name
    assert read(tmp_path / "text", cache) == TEXT


def test_zstd(tmp_path, cache):
    write_zstd(tmp_path / "text.zst", TEXT.encode())
    assert read(tmp_path / "text.zst", cache) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "twelve bytes: é".encode("latin-1"),
            r"is not UTF-8 text: byte 0xe9 at offset 14 .*iconv -f ENCODING -t UTF-8",
        ),
        ("Привет".encode("cp1251"), r"is not UTF-8 text: byte 0xcf at offset 0 "),
        (b"a\0b" * 10, r"is not text: a NUL byte at offset 1 \(a binary file, or UTF-16 without"),
        ("abc".encode("utf-16-le"), r"is not text: a NUL byte at offset 1"),
        ("naïve".encode("utf-16-le"), r"is not text: byte 0xef at offset 4 \(a binary file, or UTF-16 without"),
        (b"\x7fELF\x02\x01\x01\0\0\xff\xfe\0" * 9, r"is not text: byte 0xff at offset 9"),
        (b"\xff\xfe" + "ab".encode("utf-16-le") + b"\x00", r"is not UTF-16-LE text: byte 0x00 at offset 6"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], r"is damaged: "),
        (gzip.compress(TEXT.encode(), mtime=0)[:20] + b"\0" * 40, r"is damaged: "),
        (lzma.compress(TEXT.encode())[:-20], r"is damaged: .* \(before byte \d+\)"),
        (b"PAR1" + b"\0" * 30, r"holds parquet data, not text"),
        (b"%PDF-1.7 \xff", r"holds PDF data, not text; extract its text first"),
    ],
)
def test_what_is_no_text_is_one_sentence_and_never_guessed_at(tmp_path, cache, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"corpus: {tmp_path}/a\.txt {message}") as caught:
        TextDataModule(str(tmp_path / "a.txt"), cache_dir=str(cache))
    assert "LATIN1" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_byte_is_counted_over_pieces(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_files, "BYTES", 5)
    (tmp_path / "a.txt").write_bytes("é€".encode() * 7 + b"\xff")
    with pytest.raises(UnreadableFileError, match="byte 0xff at offset 35"):
        read(tmp_path / "a.txt", cache)


def test_archives(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/two.txt", "two\r\n")
        archive.writestr("a.txt", "one\n")
        archive.writestr("c.bin", b"\0\1\2")
    assert read(tmp_path / "a.zip", cache) == "one\n\ntwo\n"
    assert open_corpus(tmp_path / "a.zip", cache).joined
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"holds tar data, not text; unpack it and name the folder"):
        read(tmp_path / "a.tar.gz", cache)
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"b\.zip is a zip archive that cannot be read"):
        read(tmp_path / "b.zip", cache)


def test_a_folder_says_what_it_took_and_what_it_left_out(tmp_path, cache, monkeypatch):
    root = tmp_path / "code"
    for folder in (".git", "deep/er", "node_modules"):
        (root / folder).mkdir(parents=True)
    (root / "a.py").write_text("import os\n")
    (root / "deep/er/b.py").write_text("x = 1\n")
    (root / "page.html").write_text("<p>hi</p>")
    (root / "c.py.gz").write_bytes(gzip.compress(b"y = 2\n"))
    (root / "empty.py").write_text("\n \n")
    (root / "latin.py").write_bytes("é".encode("latin-1"))
    (root / "program").write_bytes(b"\x7fELF\0\0\xff" * 9)
    (root / ".git/config").write_text("no")
    (root / ".hidden").write_text("no")
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "gone").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    with open(os.fsencode(root) + b"/nam\xe9.py", "w") as file:
        file.write("z = 3\n")
    said = []
    monkeypatch.setattr("cubelet.datamodules.text.rank_zero_info", said.append)
    data = TextDataModule(str(root), context_length=4, batch_size=1, cache_dir=str(cache), split="tail")
    expected = "import os\n\ny = 2\n\nx = 1\n\nz = 3\n\n<p>hi</p>\n"
    assert data.tokenizer.decode(data._train[0].train[:]) + data.tokenizer.decode(data._val[0].val[:]) == expected
    (line,) = said
    assert line == (
        f"corpus {root}: 5 documents, {len(expected)} characters; left out: 1 binary (program), 1 empty (empty.py), "
        "2 hidden (.git), 1 links to folders that are read already (loop/), 2 links to nothing (gone), "
        "1 not UTF-8 (latin.py), 1 sockets, devices or pipes (pipe)"
    )
    kept = json.loads(json.dumps(data.state_dict()))["taken"][str(root)]
    assert kept["documents"] == 5
    assert kept["left_out"]["hidden"] == [2, ".git"]
    only = TextDataModule(
        str(root), context_length=4, batch_size=1, cache_dir=str(cache), suffixes=["py"], split="tail"
    )
    assert only._train[0].taken["documents"] == 4
    assert "of other suffixes (.html 1, without 1)" in said[-1]


def test_a_folder_of_nothing_but_other_things_is_one_sentence(tmp_path, cache):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.bin").write_bytes(b"\0" * 9)
    with pytest.raises(ConfigError, match=r"/a holds no text; left out: 1 binary \(b\.bin\)"):
        read(tmp_path / "a", cache)


def test_a_file_that_this_user_may_not_read_is_left_out_of_a_folder(tmp_path, cache, monkeypatch):
    (tmp_path / "a").mkdir()
    for name in ("x.txt", "y.txt"):
        (tmp_path / "a" / name).write_text(name)
    opened = text_files.Path.open

    def refuse(path, *rest, **options):  # root may read everything
        if path.name == "x.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(text_files.Path, "open", refuse)
    data = TextDataModule(str(tmp_path / "a"), context_length=1, cache_dir=str(cache), val_fraction=0.5)
    assert data._train[0].taken["left_out"] == {"unreadable": [1, "x.txt"]}
    with pytest.raises(UnreadableFileError, match=r"x\.txt cannot be read: Permission denied"):
        read(tmp_path / "a" / "x.txt", cache)


def test_what_lies_in_a_folder_that_may_not_be_looked_into_is_one_sentence(tmp_path, cache, monkeypatch):
    stat, scandir = os.stat, os.scandir

    def refuse_stat(path, *rest, **options):  # root may look into everything
        if str(path).startswith(f"{tmp_path}/shut/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *rest, **options)

    def refuse_scan(path):
        if str(path) == f"{tmp_path}/shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "stat", refuse_stat)
    monkeypatch.setattr(os, "scandir", refuse_scan)
    for corpus in ("shut", "shut/a.txt", "shut/tokens.bin"):
        with pytest.raises(
            UnreadableFileError, match=rf"corpus: {tmp_path}/{corpus} cannot be read: Permission denied"
        ):
            TextDataModule(str(tmp_path / corpus), cache_dir=str(cache))


def test_a_pipe_is_one_sentence(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match=r"pipe is a pipe, socket or device; write its text to a file first"):
        read(tmp_path / "pipe", cache)


# Tables


def test_tables_give_a_document_a_row(tmp_path, cache):
    rows = ["one", "two\nlines", "naïve 語", "", "four"]
    lines = "".join(json.dumps({"text": row, "n": 1}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_zstd(tmp_path / "c.jsonl.zst", lines.encode())
    (tmp_path / "d.csv").write_text("n,text\n" + "".join(f'1,"{row}"\n' for row in rows))
    (tmp_path / "e.tsv").write_text("n\ttext\n" + "".join(f'1\t"{row}"\n' for row in rows))
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"text": rows, "n": [1] * 5}), tmp_path / "f.parquet")
    expected = "one\n\ntwo\nlines\n\nnaïve 語\n\nfour\n"
    for path in sorted(tmp_path.iterdir()):
        assert read(path, cache, text_field="text") == expected, path
        if path.suffix not in (".csv", ".tsv"):
            assert read(path, cache) == expected
    with pytest.raises(
        ConfigError, match=r"f\.parquet has no field 'words'; it has text, n\. Name one with text_field"
    ):
        read(tmp_path / "f.parquet", cache, text_field="words")
    with pytest.raises(ConfigError, match=r"a\.jsonl line 1 has no field 'words'; it has text, n\."):
        read(tmp_path / "a.jsonl", cache, text_field="words")
    with pytest.raises(ConfigError, match=r"field 'n' of .*a\.jsonl line 1 holds int, not text"):
        read(tmp_path / "a.jsonl", cache, text_field="n")
    (tmp_path / "a.jsonl").write_text(lines + '{"text": "cut')
    with pytest.raises(UnreadableFileError, match=r"a\.jsonl line 6 is no JSON"):
        read(tmp_path / "a.jsonl", cache)


def test_half_characters_of_json_are_replaced(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b\\ud83d\\ude00"}\n')
    assert read(tmp_path / "a.jsonl", cache) == "a\ufffd b😀\n"


def test_datasets_from_disk_from_python_and_streaming(tmp_path, cache):
    datasets = pytest.importorskip("datasets")
    rows = [f"row number {n} of the set" for n in range(60)]
    made = datasets.Dataset.from_dict({"body": rows})
    made.save_to_disk(tmp_path / "saved")
    expected = "\n\n".join(rows) + "\n"
    assert read(tmp_path / "saved", cache, text_field="body") == expected
    assert read(made, cache, text_field="body") == expected
    assert read(made.to_iterable_dataset(), cache, text_field="body") == expected
    both = datasets.DatasetDict(train=made.select(range(50)), validation=made.select(range(50, 60)))
    both.save_to_disk(tmp_path / "both")
    for corpus in (both, tmp_path / "both"):
        parts = load_corpus(corpus, cache, text_field="body")
        assert (parts.train, parts.val) == ("\n\n".join(rows[:50]) + "\n", "\n\n".join(rows[50:]) + "\n")
    with pytest.raises(ConfigError, match="the dataset has no field 'text'; it has body"):
        read(made, cache)
    options = {"cache_dir": str(cache), "text_field": "body", "context_length": 8}
    assert TextDataModule(str(tmp_path / "saved"), **options).sha256 == TextDataModule(made, **options).sha256
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(UnreadableFileError, match=r"saved is no whole dataset of datasets: "):
        read(tmp_path / "saved", cache, text_field="body")


# Size


def test_fifty_thousand_small_files_and_a_long_line(tmp_path, cache):
    root = tmp_path / "many"
    root.mkdir()
    for n in range(3000):
        (root / f"{n:05}.txt").write_text(f"file {n}\n")
    data = TextDataModule(str(root), tokenizer="byte", context_length=8, cache_dir=str(cache))
    assert data._train[0].taken["documents"] == 3000
    (tmp_path / "line.txt").write_text("ACGT" * 750_000)
    tracemalloc.start()
    data = TextDataModule(str(tmp_path / "line.txt"), tokenizer="bpe", vocab_size=261, cache_dir=str(cache))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start = data.tokenizer.decode(data._train[0].train[:1000])
    assert start == "ACGT" * (len(start) // 4)
    assert peak < 120e6
