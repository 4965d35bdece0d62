"""What data costs: memory and time of preparing, memory and start-up of later runs, batches, resuming.

    python benchmarks/data.py [--rows memory later speed batch resume] [--megabytes 500] [--folder DIR] [--json FILE]

The corpus is made of the standard library's sources, man pages and the documentation of installed packages, repeated to
size, under DIR (a temporary folder that is removed at the end). Each figure is taken in a process of its own, and what
is compared runs in turn. `speed` compares with the pattern of nanoGPT's data/openwebtext/prepare.py (tiktoken within
datasets.map, then a memory map), with the same merges and as many processes.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000


def texts() -> Iterator[str]:
    """Sources, manual pages and documentation that lie on this machine, a file at a time."""
    library, packages = Path(os.__file__).parent, Path(json.__file__).parents[1] / "site-packages"
    for root, pattern in (
        (library, "*.py"),
        (library, "*/*.py"),
        (Path("/usr/share/man"), "man*/*.gz"),
        (Path("/usr/share/doc"), "*/*"),
        (packages, "*/*.py"),
        (Path(sys.prefix) / "lib", "python3*/site-packages/*/*.py"),
        (Path(sys.prefix) / "lib", "python3*/site-packages/*/*/*.py"),
    ):
        for path in sorted(root.glob(pattern)):
            try:
                data = path.read_bytes()
                yield (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
            except (OSError, UnicodeDecodeError, EOFError):
                continue


def make_corpus(path: Path, megabytes: int) -> Path:
    """A file of about so many megabytes; what there is, over and over."""
    if path.is_file():
        return path
    size = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while size < megabytes * MEGABYTE:
            for text in texts():
                size += file.write(text.replace("\0", ""))
                if size >= megabytes * MEGABYTE:
                    break
    return path


def run(code: str, **values: Any) -> dict[str, Any]:
    """What `code` prints as JSON in a process of its own, and the peak memory of that and its children."""
    program = "\n".join(f"{name} = {value!r}" for name, value in values.items()) + "\n" + textwrap.dedent(code)
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory_of_tree(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"a measurement failed:\n{program}")
    return {"seconds": time.monotonic() - begun, "tree_gb": peak[0] / 1e9, **json.loads(out.splitlines()[-1])}


def memory_of_tree(pid: int) -> int:
    """Bytes of a process and its children, pages that several share counted once (Linux's proportional set size)."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += memory_of_tree(int(child))
    except (OSError, ProcessLookupError):
        pass
    return total


PREPARE = """
    import json, resource, time
    from cubelet.datamodules import TextDataModule
    begun = time.monotonic()
    data = TextDataModule(corpus, cache_dir=cache, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"rss_gb": peak, "prepare_s": time.monotonic() - begun, "tokens": data._train[0].train_tokens}))
"""
EMPTY = """
    import json, resource
    from cubelet.datamodules import TextDataModule
    print(json.dumps({"rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))
"""
LATER = """
    import json, resource, time
    from cubelet.datamodules import TextDataModule
    begun = time.monotonic()
    data = TextDataModule(corpus, cache_dir=cache, tokenizer="byte", context_length=256, batch_size=32,
                          batches_per_epoch=3000)
    loader = iter(data.train_dataloader())
    next(loader)
    start = time.monotonic() - begun
    for _ in range(2000):
        next(loader)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"start_s": start, "rss_mb": rss}))
"""
BATCH = """
    import json, statistics, time
    from cubelet.datamodules import TextDataModule
    data = TextDataModule(corpus, cache_dir=cache, tokenizer="byte", context_length=1024, batch_size=64)
    def median(first):
        loader = data.train_dataloader()
        loader.load_state_dict(loader.state_dict() | {"batches": first})
        stream, times = iter(loader), []
        for _ in range(200):
            begun = time.perf_counter()
            next(stream)
            times.append(time.perf_counter() - begun)
        return statistics.median(times[1:]) * 1e3
    length = len(data.train_dataloader())
    median(0)
    print(json.dumps({"batches": length, "start_ms": median(0), "end_ms": median(length - 201)}))
"""
RESUME = """
    import json, time
    from cubelet.datamodules import TextDataModule
    begun = time.monotonic()
    data = TextDataModule(corpus, cache_dir=cache, tokenizer="byte", context_length=1024, batch_size=64)
    loader = data.train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"batches": step})
    next(iter(loader))
    print(json.dumps({"start_s": time.monotonic() - begun}))
"""
# Both sides get a folder of files, the tokenizer's JSON and a number of processes.
OURS = """
    import json, time
    from pathlib import Path
    from cubelet.datamodules import Settings
    from cubelet.datamodules.build import CorpusBuilder
    from cubelet.datamodules.corpora import open_corpus
    from cubelet.datamodules.tokenizers import BPETokenizer
    tokenizer = BPETokenizer(Path(model).read_text())
    root = Path(out)
    root.mkdir(parents=True)
    begun = time.monotonic()
    settings = Settings("bpe", tokenizer.vocab_size, eos=False, processes=processes)
    builder = CorpusBuilder([open_corpus(folder, root)], settings, ["train"], root, print)
    builder.tokenizer = tokenizer
    done = builder.run()[0]
    print(json.dumps({"s": time.monotonic() - begun, "tokens": done.train_tokens}))
"""
NANOGPT = """
    import json, time
    from pathlib import Path
    import numpy as np, tiktoken, datasets
    from tokenizers.pre_tokenizers import ByteLevel
    datasets.disable_progress_bars()
    vocab = json.loads(Path(model).read_text())["model"]["vocab"]
    letters = sorted(range(256), key=lambda b: b)
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    ranks = {bytes(back[c] for c in token): rank for token, rank in vocab.items()}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\\\\p{L}+| ?\\\\p{N}+| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+"
    enc = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
    Path(out).mkdir(parents=True)
    files = sorted(str(path) for path in Path(folder).iterdir())
    begun = time.monotonic()
    dataset = datasets.load_dataset("text", data_files=files, sample_by="document", split="train", cache_dir=out)
    def process(example):
        ids = enc.encode_ordinary(example["text"])
        ids.append(enc.eot_token)
        return {"ids": ids, "len": len(ids)}
    tokenized = dataset.map(process, remove_columns=["text"], num_proc=processes)
    length = np.sum(tokenized["len"], dtype=np.uint64)
    array = np.memmap(Path(out) / "train.bin", dtype=np.uint16, mode="w+", shape=(int(length),))
    batches, at = min(64, len(tokenized)), 0
    for number in range(batches):
        batch = tokenized.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
        joined = np.concatenate(batch["ids"])
        array[at : at + len(joined)] = joined
        at += len(joined)
    array.flush()
    print(json.dumps({"s": time.monotonic() - begun, "tokens": int(length)}))
"""


def measure_memory(folder: Path, megabytes: int) -> dict[str, Any]:
    """Peak memory of preparing: characters and bytes of the whole, BPE of a fifth."""
    large, fifth = make_corpus(folder / "large.txt", megabytes), make_corpus(folder / "fifth.txt", megabytes // 5)
    rows = {"process without data": run(EMPTY)}
    for name, corpus, options in (
        (f"char, {megabytes} MB", large, {"tokenizer": "char"}),
        (f"byte, {megabytes} MB", large, {"tokenizer": "byte"}),
        (f"bpe 1,024, {megabytes // 5} MB", fifth, {"tokenizer": "bpe", "vocab_size": 1024}),
    ):
        rows[name] = run(PREPARE, corpus=str(corpus), cache=str(folder / "cache"), options=options)
    return rows


def measure_later(folder: Path, megabytes: int) -> dict[str, Any]:
    """A later run on much text over one on little: median of five, in turn."""
    sizes = {
        f"{megabytes} MB": make_corpus(folder / "large.txt", megabytes),
        "1 MB": make_corpus(folder / "one.txt", 1),
    }
    options = {"tokenizer": "byte"}
    for corpus in sizes.values():
        run(PREPARE, corpus=str(corpus), cache=str(folder / "cache"), options=options)
    runs = [
        (name, run(LATER, corpus=str(path), cache=str(folder / "cache")))
        for _ in range(5)
        for name, path in sizes.items()
    ]
    return {name: medians([one for other, one in runs if other == name], "start_s", "rss_mb") for name in sizes}


def measure_speed(folder: Path, megabytes: int) -> dict[str, Any]:
    """Megabytes tokenized a second, by this project and by nanoGPT's pattern, in turn."""
    from cubelet.datamodules.tokenizers import BPETokenizer

    files, size, sample = folder / "files", 0, []
    files.mkdir(exist_ok=True)
    for number, text in enumerate(texts()):
        (files / f"{number:06}.txt").write_text(text, encoding="utf-8")
        sample.append(text[:20_000])
        size += len(text.encode())
        if size > megabytes / 10 * MEGABYTE:
            break
    (folder / "model.json").write_text(json.dumps(BPETokenizer.train(sample[::3], 1024).to_dict()["model"]))
    rows = []
    for turn in range(2):
        for processes in (1, 2):
            for name, code in (("cubelet", OURS), ("nanoGPT's pattern", NANOGPT)):
                out = str(folder / f"{name}-{processes}-{turn}")
                one = run(code, folder=str(files), model=str(folder / "model.json"), out=out, processes=processes)
                rows.append({"who": name, "processes": processes, "mb_per_s": size / MEGABYTE / one["s"], **one})
    found: dict[str, Any] = {"megabytes": size / MEGABYTE}
    for processes in (1, 2):
        both = {
            name: statistics.median(r["mb_per_s"] for r in rows if (r["who"], r["processes"]) == (name, processes))
            for name in ("cubelet", "nanoGPT's pattern")
        }
        found[f"{processes} processes"] = both | {"ratio": both["cubelet"] / both["nanoGPT's pattern"]}
    return found


def measure_batch(folder: Path, megabytes: int) -> dict[str, Any]:
    """Milliseconds for a batch of 64 × 1,024 tokens, at the start and at the end of a pass."""
    return run(BATCH, corpus=str(make_corpus(folder / "large.txt", megabytes)), cache=str(folder / "cache"))


def measure_resume(folder: Path, megabytes: int) -> dict[str, Any]:
    """Seconds to the first batch, from step 0 and from step 1,000,000: median of five, in turn."""
    corpus = str(make_corpus(folder / "large.txt", megabytes))
    run(PREPARE, corpus=corpus, cache=str(folder / "cache"), options={"tokenizer": "byte"})
    runs = [
        (step, run(RESUME, corpus=corpus, cache=str(folder / "cache"), step=step))
        for _ in range(5)
        for step in (0, 10**6)
    ]
    return {f"step {step}": medians([one for other, one in runs if other == step], "start_s") for step in (0, 10**6)}


def medians(runs: list[dict[str, Any]], *names: str) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in runs) for name in names}


ROWS = {
    "memory": measure_memory,
    "later": measure_later,
    "speed": measure_speed,
    "batch": measure_batch,
    "resume": measure_resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in given.rows:
            found[name] = ROWS[name](folder, given.megabytes)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
