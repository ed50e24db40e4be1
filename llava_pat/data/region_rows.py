"""The lines of a regions file, whichever form it has: JSONL, Parquet, or a folder of such shards.

A Parquet file has a row where JSONL has a line, with the same keys; it is read by pyarrow, an optional extra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llava_pat.data.json_text import BadJson, JsonReader
from llava_pat.types import DataError

PARQUET = ".parquet"
SHARDS = (PARQUET, ".jsonl")
_ROWS = 1024  # Parquet rows that are Python objects at one time


def read_rows(
    path: str | Path, broken: list[tuple[str, int, DataError]] | None = None
) -> Iterator[tuple[str, int, Any]]:
    """(file, 1-based line or row, parsed object) of every image. DataError names file and line.

    path: a .jsonl or .parquet file, or a folder whose .jsonl and .parquet files are read in the order of their names.
    broken: takes (file, line, error) of lines that are no JSON, instead of the first of them being an error.
    """
    for file in find_shards(Path(path)):
        rows = _parquet_rows(file) if file.suffix == PARQUET else _lines(file, broken)
        for number, raw in rows:
            yield str(file), number, raw


def count_rows(files: Iterable[Path]) -> int:
    """How many images the files of a regions file are about, without parsing them."""
    count = 0
    for file in files:
        if file.suffix == PARQUET:
            pyarrow, parquet = import_pyarrow(file, "read")
            try:
                count += parquet.read_metadata(file).num_rows
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{file}: no whole Parquet file ({error}); write it again") from error
        else:
            with file.open("rb") as lines:
                count += sum(1 for line in lines if not line.isspace())
    return count


def find_shards(path: Path) -> list[Path]:
    """A regions file's own files: itself, or a folder's shards in order. Hidden ones are not finished, so left out."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file; give the path of a regions file (JSONL, Parquet, or a folder of them)")
    shards = sorted(file for file in path.iterdir() if file.suffix in SHARDS and not file.name.startswith("."))
    if not shards:
        raise DataError(
            f"{path}: this folder has no {' or '.join(SHARDS)} files; it should hold a regions file's shards"
        )
    return shards


def import_pyarrow(file: Path, verb: str) -> Any:
    """The modules pyarrow and pyarrow.parquet, or a DataError with the command that installs them."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{file} is {verb} by pyarrow, which is not installed: pip install pyarrow, or take .jsonl instead"
        ) from error
    return pyarrow, parquet


def _lines(file: Path, broken: list[tuple[str, int, DataError]] | None) -> Iterator[tuple[int, Any]]:
    number = 0
    reader = JsonReader()
    with file.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        raw = _read_line(reader, line, file, number)
                    except DataError as error:
                        if broken is None:
                            raise
                        broken.append((str(file), number, error))
                        continue
                    yield number, raw
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 text after line {number} ({error.reason}); save it as UTF-8") from error


def _read_line(reader: JsonReader, line: str, file: Path, number: int) -> Any:
    try:
        raw = reader.read_whole(line)
    except BadJson as error:
        raise DataError(
            f"{file}:{number}: bad JSON at column {error.column}: {error.reason}; one object per line is expected",
            "bad_regions",
        ) from error
    if reader.fault is not None:
        raise DataError(f"{file}:{number}: {reader.fault}", "bad_regions")
    return raw


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    pyarrow, parquet = import_pyarrow(file, "read")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS):
                for raw in batch.to_pylist():
                    number += 1
                    yield number, raw
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: no whole Parquet file ({error}); write it again") from error
