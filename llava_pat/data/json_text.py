"""JSON from somebody else's file: whatever it holds, the answer is a value or one line that says what is wrong.

Python's reader ends in a RecursionError on deep nesting and in a ValueError that names no place on long numbers, takes
the last of two equal keys without a word, and lets half of a surrogate pair through, which no file can hold.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from typing import Any

_SPACE = " \t\n\r"  # JSON's
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DEEP = "nested too deeply"


class BadJson(ValueError):
    """The text is no JSON; line and column count from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"line {line} column {column}: {reason}")
        self.reason, self.line, self.column = reason, line, column


class JsonReader:
    """Reads values one after the other, strictly.

    fault: why the value that was read last must not be used although it is JSON; None if nothing is wrong with it.
    """

    def __init__(self) -> None:
        self.fault: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)

    def read(self, text: str, place: int = 0) -> tuple[Any, int]:
        """The value that starts at `place`, and where it ends. Raises BadJson."""
        self.fault = None
        try:
            value, end = self._decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise BadJson(error.msg, error.lineno, error.colno) from error
        except RecursionError as error:
            raise BadJson(_DEEP, *line_and_column(text, place)) from error
        if self.fault is None and _SURROGATE.search(text, place, end):
            self.fault = _half_a_character(value)
        return value, end

    def read_whole(self, text: str) -> Any:
        """The one value of a text. Raises BadJson, also for what stands behind it."""
        value, end = self.read(text, len(text) - len(text.lstrip(_SPACE)))
        behind = text[end:].lstrip(_SPACE)
        if behind:
            raise BadJson("Extra data", *line_and_column(text, len(text) - len(behind)))
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            self.fault = f"has the key {quoted(twice)} twice in one object, so one of the two values would be lost"
        return found

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python's limit: the work grows with the square of the length
            self.fault = f"has a number of {len(digits)} digits"
            return 0


def parse_json(text: str) -> Any:
    """The value of a text, duplicate keys and all, as json.loads. Raises BadJson."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadJson(error.msg, error.lineno, error.colno) from error
    except RecursionError as error:
        raise BadJson(_DEEP, 1, 1) from error
    except ValueError as error:  # a number that is too long
        raise BadJson(str(error), 1, 1) from error


def quoted(value: Any) -> str:
    """repr for an error message: of any value, however long or deep, a short text."""
    return _QUOTE.repr(value)


def _quote() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 4, 200, 200, 60
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 20
    return short


_QUOTE = _quote()


def line_and_column(text: str, place: int) -> tuple[int, int]:
    """Of a character of the text, from 1."""
    return text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)


def _half_a_character(value: Any) -> str | None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"has {error.object[error.start]!r}, half of a character, in its text"
    except RecursionError:
        return f"is {_DEEP}"
    return None
