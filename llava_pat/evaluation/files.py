"""Reading benchmarks' files: JSON, JSONL and LLaVA's question files; errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.types import DataError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or no JSON.
    """
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: no JSON ({error}); download it again") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, empty lines left out.

    Raises:
        DataError: the file is missing, or a line is no JSON object.
    """
    return [item for _, item in _numbered(path)]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The lines of one of LLaVA's question files: `{"question_id", "image", "text"[, "category"]}`, in file order.

    Ids may repeat: LLaVA's files for MME and TextVQA have the image's name as the id of all of its questions.

    Raises:
        DataError: the file is missing or empty, a line is no JSON object or lacks one of the three keys.
    """
    lines = []
    for number, item in _numbered(path):
        for key in ("question_id", "image", "text"):
            if key not in item:
                raise DataError(f"{path}, line {number}: no {key!r}; a question needs question_id, image and text")
        lines.append(item)
    if not lines:
        raise DataError(f"{path}: no question in it; download it again")
    return lines


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
            item = json.loads(line)
        except json.JSONDecodeError as error:
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
