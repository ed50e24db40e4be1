"""The words that patches are read with: a JSON file {facet: [words]}, and which of them a label contains."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from llava_pat.types import DataError


@dataclass(frozen=True)
class Vocabulary:
    """V distinct entries (words or short phrases) and the facets that group them, as column numbers."""

    words: tuple[str, ...]
    facets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def find(self, label: str) -> tuple[int, ...]:
        """Entries that the label contains, as column numbers in the label's order.

        Whole words, case ignored, left to right, the longest entry first: "hot dog" is not also "dog".
        """
        parts = _parts(label)
        by_parts = self._by_parts
        longest = max(map(len, by_parts), default=0)
        found: list[int] = []
        start = 0
        while start < len(parts):
            for length in range(min(longest, len(parts) - start), 0, -1):
                column = by_parts.get(parts[start : start + length])
                if column is not None:
                    found.append(column)
                    start += length
                    break
            else:
                start += 1
        return tuple(dict.fromkeys(found))

    @cached_property
    def _by_parts(self) -> dict[tuple[str, ...], int]:
        """Made once: a data set's labels are all looked up in the vocabulary of all of them."""
        return {_parts(word): column for column, word in enumerate(self.words)}

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Which entries each label contains: bool [len(labels), V]; a row may be all False."""
        matrix = torch.zeros(len(labels), len(self.words), dtype=torch.bool)
        columns = {label: list(self.find(label)) for label in set(labels)}
        for row, label in enumerate(labels):
            matrix[row, columns[label]] = True
        return matrix


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read {"kind": ["circle", ...], "colour": ["red", ...]}; words in file order, one in two facets only once.

    Raises:
        DataError: unreadable JSON, another shape, an empty facet or word, a word twice in one facet.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        json.dumps(content, ensure_ascii=False).encode()  # half of a character can stand in JSON, and in no text
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such vocabulary file") from error
    except _Twice as error:
        raise DataError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); expected {{facet: [words]}}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or what only JSON's grammar allows
        raise DataError(f"{path}: not JSON ({error}); expected {{facet: [words]}}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f'{path}: expected an object {{facet: [words]}}, for instance {{"colour": ["red", "blue"]}}')
    columns: dict[tuple[str, ...], int] = {}
    words: list[str] = []
    facets: dict[str, tuple[int, ...]] = {}
    for facet, entries in content.items():
        if not isinstance(entries, list) or not entries or not all(isinstance(e, str) and _parts(e) for e in entries):
            raise DataError(f"{path}: facet {facet!r} must be a non-empty list of non-empty words")
        keys = [_parts(entry) for entry in entries]
        twice = sorted({" ".join(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise DataError(f"{path}: facet {facet!r} has {', '.join(twice)} more than once")
        for key, entry in zip(keys, entries, strict=True):
            if key not in columns:
                columns[key] = len(words)
                words.append(entry)
        facets[facet] = tuple(columns[key] for key in keys)
    return Vocabulary(tuple(words), facets)


def vocabulary_of(labels: Iterable[str]) -> Vocabulary:
    """The distinct labels of a data set as entries, sorted, without facets."""
    distinct = {_parts(label): label for label in sorted(labels, reverse=True)}
    return Vocabulary(tuple(distinct[key] for key in sorted(distinct) if key))


class _Twice(ValueError):
    """A key that is there twice; Python would take the last one without a word."""


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise _Twice(f"facet {key!r} is there {count} times, so the words of one would be lost; make it one")
    return dict(pairs)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+(?:['’\-][^\W_]+)*", text.casefold()))
