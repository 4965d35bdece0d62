"""A user's own speech: five layouts of files and transcripts, recognised by what lies in the folder.

| layout | is recognised by |
|---|---|
| LibriSpeech: `speaker/chapter/*.flac` with `*.trans.txt` | a `*.trans.txt` somewhere below |
| Common Voice: `train.tsv`, `dev.tsv`, `test.tsv` and `clips/` | a `.tsv` file with the columns `path` and `sentence` |
| NeMo: lines of JSON with `audio_filepath`, `text`, `duration` | a `.jsonl` or `.json` file, or a folder of them |
| pairs: `x.wav` (or flac, ogg, mp3) and `x.txt` | audio files with texts of the same name |
| `datasets`: what `Dataset.save_to_disk` wrote, with `audio` and `text` | `dataset_info.json` or `dataset_dict.json` |

A first folder or file named `dev…`, `valid…` or `test…` is held out; without one, one text in ten, by its hash.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError, MissingFileError, UnreadableFileError

from .audio import AUDIO_SUFFIXES, SAMPLE_RATE, audio_samples, read_audio
from .cache import build_folder
from .commands import is_held_out, read_split, write_split
from .tokenizer import normalize_text
from .utterance import SpeechCorpus, Utterance, file_place

# split, audio file, transcript, speaker, seconds or None, place
Entry = tuple[str, Path, str, str, float | None, str]


def load_folder(path: Path, cache: Path) -> SpeechCorpus:
    """Return the corpus in a folder or manifest, of whichever layout.

    Args:
        path: folder or manifest file.
        cache: folder of all caches; only a `datasets` folder needs it, whose sounds lie inside other files.

    Raises:
        MissingFileError: nothing at `path`.
        ConfigError: no layout that is known here, or no utterance that can be used.
    """
    if not path.exists():
        raise MissingFileError(f"corpus {path} is neither 'commands' nor 'prompts' nor a folder or manifest")
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return load_datasets(path, cache)
    left_out: dict[str, list[str]] = defaultdict(list)
    splits: dict[str, list[Utterance]] = defaultdict(list)
    for split, audio, text, speaker, seconds, place in find_entries(path):
        text = normalize_text(text)
        if not text:
            left_out["empty transcript"].append(place)
            continue
        try:
            samples = audio_samples(audio) if seconds is None else round(seconds * SAMPLE_RATE)
        except (MissingFileError, UnreadableFileError) as error:
            left_out["unreadable" if isinstance(error, UnreadableFileError) else "missing"].append(place)
            continue
        splits[split].append(Utterance(text, samples, str(audio), speaker=speaker, place=place))
    return divide(path.name, splits, left_out)


def divide(name: str, splits: dict[str, list[Utterance]], left_out: dict[str, list[str]]) -> SpeechCorpus:
    """Return a corpus whose held-out splits are those named so, or one text in ten where none is.

    Raises:
        ConfigError: nothing to train on, or nothing held out.
    """
    held_out = {split: rows for split, rows in splits.items() if split.startswith(("dev", "valid", "test"))}
    train = [u for split, rows in splits.items() if split not in held_out for u in rows]
    if not held_out:
        held_out = {"texts": [u for u in train if is_held_out(u.text)]}
        train = [u for u in train if not is_held_out(u.text)]
    if not train or not all(held_out.values()):
        sizes = ", ".join(f"{split} {len(rows)}" for split, rows in {"train": train, **held_out}.items())
        reasons = "; ".join(f"{len(places)} left out: {reason} ({places[0]})" for reason, places in left_out.items())
        raise ConfigError(f"corpus {name} leaves a split empty ({sizes}). {reasons}".strip())
    order = sorted(held_out, key=lambda split: (not split.startswith(("dev", "valid")), split))
    return SpeechCorpus(name, train, {split: held_out[split] for split in order}, dict(left_out))


def find_entries(path: Path) -> Iterator[Entry]:
    """Yield what a manifest or a folder of one of the file layouts names.

    Raises:
        ConfigError: none of the layouts.
    """
    if path.is_file():
        yield from read_tsv(path) if path.suffix == ".tsv" else read_nemo(path)
    elif transcripts := sorted(path.rglob("*.trans.txt")):
        for transcript in transcripts:
            yield from read_librispeech(transcript, _split_of(path, transcript))
    elif tables := sorted(path.glob("*.tsv")):
        # Common Voice's other tables (validated.tsv, other.tsv) repeat or contradict these three.
        chosen = [table for table in tables if table.stem in ("train", "dev", "test")] or tables
        for table in chosen:
            yield from read_tsv(table)
    elif manifests := sorted([*path.glob("*.jsonl"), *path.glob("*.json")]):
        for manifest in manifests:
            yield from read_nemo(manifest)
    else:
        audio = sorted(f for f in path.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES)
        pairs = [(f, f.with_suffix(".txt")) for f in audio if f.with_suffix(".txt").is_file()]
        if not pairs:
            raise ConfigError(
                f"{path} holds no speech corpus: no *.trans.txt (LibriSpeech), *.tsv (Common Voice), *.jsonl (NeMo), "
                "dataset_info.json (datasets), nor audio files with a .txt of the same name"
            )
        for file, text in pairs:
            yield _split_of(path, file), file, _read_text(text), "", None, file_place(text, 1)


def read_librispeech(transcript: Path, split: str) -> Iterator[Entry]:
    """Yield the lines `speaker-chapter-number TEXT` of one `*.trans.txt`."""
    for number, line in enumerate(_read_text(transcript).splitlines(), 1):
        key, _, text = line.partition(" ")
        if key:
            place = file_place(transcript, number)
            files = (transcript.with_name(key + suffix) for suffix in AUDIO_SUFFIXES)
            audio = next((f for f in files if f.is_file()), transcript.with_name(f"{key}.flac"))
            yield split, audio, text, key.partition("-")[0], None, place


def read_tsv(table: Path) -> Iterator[Entry]:
    """Yield the rows of a Common Voice table.

    Raises:
        ConfigError: columns `path` and `sentence` are not both there.
    """
    rows = csv.DictReader(_read_text(table).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"path", "sentence"} <= set(rows.fieldnames or ()):
        raise ConfigError(f"{table} has the columns {rows.fieldnames}; it needs `path` and `sentence`")
    clips = table.parent / "clips"
    for number, row in enumerate(rows, 2):
        audio = (clips if clips.is_dir() else table.parent) / (row["path"] or "")
        yield table.stem, audio, row["sentence"] or "", row.get("client_id") or "", None, file_place(table, number)


def read_nemo(manifest: Path) -> Iterator[Entry]:
    """Yield the lines of a NeMo manifest; relative paths start at the manifest's folder.

    Raises:
        ConfigError: a line that is no JSON object with `audio_filepath` and `text`.
    """
    for number, line in enumerate(_read_text(manifest).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            audio, text = Path(row["audio_filepath"]), str(row["text"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{manifest}:{number} is no line of a manifest ({error!r}); expected "
                '{"audio_filepath": "…", "text": "…", "duration": 1.5}'
            ) from None
        yield (
            _stem_split(manifest),
            manifest.parent / audio,
            text,
            str(row.get("speaker", "")),
            row.get("duration"),
            (file_place(manifest, number)),
        )


def load_datasets(path: Path, cache: Path) -> SpeechCorpus:
    """Return the corpus in a folder of `Dataset.save_to_disk`: columns `audio` and `text` (or `sentence`).

    The sounds are decoded once into `cache`.

    Raises:
        ConfigError: other columns.
    """
    from cubelet.common.optional_imports import import_optional

    datasets: Any = import_optional("datasets", "speech")
    stored = datasets.load_from_disk(str(path))
    tables = stored if isinstance(stored, dict) else {"train": stored}
    fingerprint = "-".join(f"{split}{table._fingerprint}" for split, table in tables.items())
    left_out: dict[str, list[str]] = defaultdict(list)

    def rows(split: str, table: Any) -> Iterator[list[tuple[str, str, Any]]]:
        column = next((c for c in ("text", "sentence", "transcription") if c in table.column_names), None)
        if column is None or "audio" not in table.column_names:
            raise ConfigError(f"{path} has the columns {table.column_names}; it needs `audio` and `text`")
        table = table.cast_column("audio", datasets.Audio(decode=False))
        for number, row in enumerate(table):
            wave = _decode(row["audio"], path)
            text = normalize_text(row[column] or "")
            if not text:
                left_out["empty transcript"].append(f"{split}:{number}")
                continue
            yield [(text, str(row.get("speaker_id", "")), (wave * 32767).round().astype("int16"))]

    def fill(folder: Path) -> None:
        for split, table in tables.items():
            write_split(folder, split, rows(split, table))

    folder = build_folder(cache / "speech" / f"datasets-{fingerprint}"[:120], fill)
    return divide(path.name, {split: read_split(folder, split) for split in tables}, left_out)


def _decode(audio: dict[str, Any], folder: Path) -> Any:
    """The sound of a `datasets` cell: encoded bytes, or the path of a file."""
    import io

    from cubelet.common.optional_imports import import_optional

    if audio.get("bytes"):
        soundfile: Any = import_optional("soundfile", "speech")
        samples, rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32", always_2d=True)
        return read_audio(samples, rate)
    return read_audio(folder / audio["path"])


def _split_of(root: Path, file: Path) -> str:
    """The first folder below `root` names the split (`dev-clean`); files in `root` itself belong to none."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else "all"


def _stem_split(manifest: Path) -> str:
    """`dev_manifest.jsonl` → `dev`."""
    return manifest.stem.removesuffix("_manifest").removeprefix("manifest_")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
