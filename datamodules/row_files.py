"""Documents out of tables, one a row: JSON lines, CSV, parquet, and datasets of Hugging Face's `datasets`.

All are read in pieces. Parquet and datasets need `pip install 'cubelet[data]'`.
"""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cubelet.common.errors import ConfigError, UnreadableFileError
from cubelet.common.optional_imports import import_optional

from .text_files import COMPRESSED, open_plain, show

DEFAULT_FIELD = "text"
_ROWS = 1000  # of a table, read at a time


def table_kind(path: Path) -> str | None:
    """`jsonl`, `csv` or `parquet` by a file's name (compressed or not), else None."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    kinds = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
    return kinds.get(suffixes[-1]) if suffixes else None


def read_rows(path: Path, field: str | None) -> Iterator[str]:
    """The field of each row of a table that lies in a file.

    Args:
        path: see `table_kind`.
        field: name of the column; None for `text`.

    Raises:
        ConfigError: no such field; names those there are.
        UnreadableFileError: a line that is no JSON, damaged data; with the line.
    """
    kind = table_kind(path)
    if kind == "parquet":
        yield from _parquet_rows(path, field or DEFAULT_FIELD)
        return
    with open_plain(path) as (stream, _):
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="" if kind == "csv" else None)
        try:
            read = _csv_rows if kind == "csv" else _json_rows
            yield from read(lines, path, field or DEFAULT_FIELD)
        except UnicodeDecodeError as error:
            raise UnreadableFileError(f"corpus: {show(path)} is not UTF-8 text: {error.reason}") from error
        finally:
            lines.detach()


def _json_rows(lines: Any, path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UnreadableFileError(f"corpus: {show(path)} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UnreadableFileError(f"corpus: {show(path)} line {number} is no JSON object with fields")
        yield _take(row, field, f"{show(path)} line {number}")


def _csv_rows(lines: Any, path: Path, field: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",")
    try:
        for row in reader:
            yield _take(row, field, f"{show(path)} line {reader.line_num}")
    except csv.Error as error:
        raise UnreadableFileError(f"corpus: {show(path)} line {reader.line_num}: {error}") from error


def _parquet_rows(path: Path, field: str) -> Iterator[str]:
    parquet = import_optional("pyarrow.parquet", "data")
    try:
        table = parquet.ParquetFile(path)
        if field not in table.schema_arrow.names:
            raise _no_field(field, table.schema_arrow.names, show(path))
        for batch in table.iter_batches(batch_size=_ROWS, columns=[field]):
            yield from (_text(value, field, show(path)) for value in batch.column(0).to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
        if isinstance(error, (ConfigError, UnreadableFileError)):
            raise
        raise UnreadableFileError(f"corpus: {show(path)} cannot be read as parquet: {error}") from error


def dataset_rows(dataset: Any, field: str | None) -> Iterator[str]:
    """The field of each row of a dataset of the package `datasets`, one that streams or one on disk."""
    field = field or DEFAULT_FIELD
    names = getattr(dataset, "column_names", None)
    if names is not None and field not in names:
        raise _no_field(field, names, "the dataset")
    if not hasattr(dataset, "select_columns"):
        raise ConfigError(f"corpus: {type(dataset).__name__} is no dataset of the package datasets")
    for rows in dataset.select_columns([field]).iter(batch_size=_ROWS):
        yield from (_text(value, field, "the dataset") for value in rows[field])


def _take(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise _no_field(field, list(row), where)
    return _text(row[field], field, where)


def _text(value: Any, field: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"corpus: field '{field}' of {where} holds {type(value).__name__}, not text")
    # JSON can spell half a character ("\ud83d"), which cannot be encoded.
    if not value.isascii():
        value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _no_field(field: str, names: list[Any], where: str) -> ConfigError:
    return ConfigError(
        f"corpus: {where} has no field '{field}'; it has {', '.join(map(str, names[:20]))}. Name one with text_field"
    )
