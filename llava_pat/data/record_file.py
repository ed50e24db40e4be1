"""The text of a LLaVA file, JSON list or JSONL, as numbered objects: (position, line on which it starts, object)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.data.json_text import BadJson, JsonReader, line_and_column, quoted
from llava_pat.types import DataError

NO_JSON, BAD_VALUE = "bad_json", "bad_value"
_SPACE = frozenset(" \t\n\r")  # JSON's


def read_objects(file: Path) -> Iterator[tuple[int, int, Any]]:
    """Every element of a list, or every line of a JSONL file; the content decides which of the two it is.

    Lines count from 1; the position is that in the list, or the line less one. In the place of what is no JSON stands
    a DataError of kind NO_JSON: a list ends there, lines go on. In the place of JSON that must not be used (json_text)
    stands one of kind BAD_VALUE, and both go on. Raises DataError for a file that is no UTF-8 text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8", NO_JSON) from error
    return _elements(text, file) if text.lstrip()[:1] == "[" else _lines(text, file)


def _elements(text: str, file: Path) -> Iterator[tuple[int, int, Any]]:
    """One by one, since json.loads would not tell on which line each starts."""
    reader = JsonReader()
    index, line, counted = 0, 1, 0
    place = _after_space(text, _after_space(text, 0) + 1)
    try:
        while text[place : place + 1] != "]" or index:
            line += text.count("\n", counted, place)
            counted = place
            raw, place = reader.read(text, place)
            yield index, line, _usable(raw, reader, file, index)
            index += 1
            place = _after_space(text, place)
            if text[place : place + 1] != ",":
                break
            place = _after_space(text, place + 1)
        if text[place : place + 1] != "]":
            raise BadJson("Expecting ',' delimiter", *line_and_column(text, place))
        place = _after_space(text, place + 1)
        if place < len(text):
            raise BadJson("Extra data", *line_and_column(text, place))
    except BadJson as error:
        cut_off = text.rstrip()[-1:] != "]"
        yield (
            index,
            error.line,
            DataError(
                f"{file}:{error.line}: bad JSON at column {error.column}: {error.reason}"
                + ("; its list has no end: fetch it again" if cut_off else ""),
                NO_JSON,
            ),
        )


def _lines(text: str, file: Path) -> Iterator[tuple[int, int, Any]]:
    reader = JsonReader()
    # split on "\n" alone: str.splitlines would also cut at U+2028, which JSON allows inside strings
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            try:
                raw = _usable(reader.read_whole(line), reader, file, number)
            except BadJson as error:
                raw = DataError(
                    f"{file}:{number + 1}: bad JSON at column {error.column}: {error.reason}; "
                    "a file is one JSON list, or one JSON object per line",
                    NO_JSON,
                )
            yield number, number + 1, raw


def _usable(raw: Any, reader: JsonReader, file: Path, index: int) -> Any:
    if reader.fault is None:
        return raw
    identity = quoted(raw.get("id")) if isinstance(raw, dict) else None
    return DataError(f"{file}: record {index} (id {identity}): {reader.fault}", BAD_VALUE)


def _after_space(text: str, place: int) -> int:
    """The first place from `place` on that holds no white space."""
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place
