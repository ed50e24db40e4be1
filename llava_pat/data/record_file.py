"""The text of a LLaVA file, JSON list or JSONL, as numbered objects: (position, line on which it starts, object)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.types import DataError

KIND = "bad_json"
_SPACE = frozenset(" \t\n\r")  # JSON's


def read_objects(file: Path) -> Iterator[tuple[int, int, Any]]:
    """Every element of a list, or every line of a JSONL file; the content decides which of the two it is.

    Lines count from 1; the position is that in the list, or the line less one. In the place of what is no JSON stands
    a DataError: a list ends there, lines go on. Raises DataError for a file that is no UTF-8 text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8", KIND) from error
    return _elements(text, file) if text.lstrip()[:1] == "[" else _lines(text, file)


def _elements(text: str, file: Path) -> Iterator[tuple[int, int, Any]]:
    """One by one, since json.loads would not tell on which line each starts."""
    decoder = json.JSONDecoder()
    index, line, counted = 0, 1, 0
    place = _after_space(text, _after_space(text, 0) + 1)
    try:
        while text[place : place + 1] != "]" or index:
            line += text.count("\n", counted, place)
            counted = place
            raw, place = decoder.raw_decode(text, place)
            yield index, line, raw
            index += 1
            place = _after_space(text, place)
            if text[place : place + 1] != ",":
                break
            place = _after_space(text, place + 1)
        if text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        place = _after_space(text, place + 1)
        if place < len(text):
            raise json.JSONDecodeError("Extra data", text, place)
    except json.JSONDecodeError as error:
        cut_off = text.rstrip()[-1:] != "]"
        yield (
            index,
            error.lineno,
            DataError(
                f"{file}:{error.lineno}: bad JSON at column {error.colno}: {error.msg}"
                + ("; its list has no end: fetch it again" if cut_off else ""),
                KIND,
            ),
        )


def _lines(text: str, file: Path) -> Iterator[tuple[int, int, Any]]:
    # split on "\n" alone: str.splitlines would also cut at U+2028, which JSON allows inside strings
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            try:
                raw = json.loads(line)
            except json.JSONDecodeError as error:
                raw = DataError(
                    f"{file}:{number + 1}: bad JSON at column {error.colno}: {error.msg}; "
                    "a file is one JSON list, or one JSON object per line",
                    KIND,
                )
            yield number, number + 1, raw


def _after_space(text: str, place: int) -> int:
    """The first place from `place` on that holds no white space."""
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place
