"""Reading annotation files: JSON and JSONL; errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.data.json_text import BadJson, parse_json
from llava_pat.types import DataError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or no JSON.
    """
    try:
        return parse_json(_text(path))
    except BadJson as error:
        raise DataError(f"{path}: no JSON ({error}); download it again") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, empty lines left out.

    Raises:
        DataError: the file is missing, or a line is no JSON object.
    """
    return [item for _, item in _numbered(path)]


def field(item: dict[str, Any], key: str, path: Path, which: object) -> Any:
    """`item[key]` of an annotation file's entry.

    Raises:
        DataError: the entry has no such key; the message names the file, the entry and the key.
    """
    if key not in item:
        raise DataError(f"{path}, entry {which}: no {key!r}; is this the official file? It has {', '.join(item)}")
    return item[key]


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = parse_json(line)
        except BadJson as error:
            raise DataError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(item, dict):
            raise DataError(f"{path}, line {number}: {type(item).__name__} instead of a JSON object")
        yield number, item


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); download it again") from error
