"""How rows look in every figure: short names, colours, line styles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.evaluation.alignment.report.files import Row
from llava_pat.pages.figures import COLOURS, GREY

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
RIGHT, WRONG = COLOURS[0], COLOURS[1]


@dataclass(frozen=True)
class Look:
    """How one row is drawn."""

    title: str
    """Short: without what all checkpoints' names begin with, or which checkpoint a baseline is of."""
    group: str
    """The title without a seed, or the kind of baseline: rows of one group have one colour."""
    colour: str
    marker: str
    dashes: str | tuple
    first: bool
    """Whether it is the first of its group: the one that a legend names."""
    is_baseline: bool


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look for every row, by its name."""
    checkpoints = [row for row in rows if not row.is_baseline]
    titles = shorten([row.title for row in checkpoints])
    short = {row.name: title for row, title in zip(checkpoints, titles, strict=True)}
    found: dict[str, Look] = {}
    groups: dict[bool, list[str]] = {False: [], True: []}
    for row in rows:
        title = row.title.removesuffix(f" of {row.name.partition('-of-')[2]}") if row.is_baseline else short[row.name]
        group = title if row.is_baseline else _without_seed(title)
        seen = groups[row.is_baseline]
        first = group not in seen
        if first:
            seen.append(group)
        number = seen.index(group)
        found[row.name] = Look(
            title=title,
            group=group,
            colour=GREY if row.is_baseline else COLOURS[number % len(COLOURS)],
            marker=MARKERS[(number // (1 if row.is_baseline else len(COLOURS))) % len(MARKERS)],
            dashes=DASHES[1:][number % 3] if row.is_baseline else DASHES[number // len(COLOURS) % len(DASHES)],
            first=first,
            is_baseline=row.is_baseline,
        )
    return found


def one_of_a_kind(rows: Sequence[Row]) -> list[Row]:
    """All checkpoints, and of every kind of baseline the first."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.kind, row)
    return list(first.values())


def shorten(names: Sequence[str]) -> list[str]:
    """Names without the parts (between - and /) that all of them begin or end with; one part always stays."""
    if len(names) < 2:
        return list(names)
    parts = [re.findall(r"[^-/]+", name) or [name] for name in names]
    marks = [re.findall(r"[-/]+", name.lstrip("-/")) for name in names]
    shortest = min(map(len, parts))
    front = _common(parts, shortest - 1)
    back = _common([own[::-1] for own in parts], shortest - 1 - front)
    kept = [slice(front, len(own) - back) for own in parts]
    return [
        "".join(part + mark for part, mark in zip(own[keep], [*its[keep][: len(own[keep]) - 1], ""], strict=True))
        for own, its, keep in zip(parts, marks, kept, strict=True)
    ]


def _common(parts: Sequence[Sequence[str]], most: int) -> int:
    """How many first parts are the same in all, at most so many."""
    count = 0
    while count < most and len({own[count] for own in parts}) == 1:
        count += 1
    return count


def _without_seed(title: str) -> str:
    return re.sub(r"[-_ ,(]*seed[-_ ]?\d+\)?", "", title) or title
