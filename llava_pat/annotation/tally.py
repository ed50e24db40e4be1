"""What became of a data set: counted by reason, with the first of each, as a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llava_pat.annotation.converters.base import LeftOut

_SHOWN_LABELS = 5
_SHOWN_WHERE = 160  # characters


@dataclass
class Tally:
    """Counts."""

    images: int = 0
    """With a line."""
    labels: Counter[str] = field(default_factory=Counter)
    """Regions by label."""
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(unit, reason) -> how many."""
    first: dict[tuple[str, str], str] = field(default_factory=dict)
    """(unit, reason) -> the first of them, where that is known."""

    def leave_out(self, left: LeftOut) -> None:
        key = (left.unit, left.reason)
        self.left_out[key] += 1
        self.first.setdefault(key, left.where)


def render_tally(tally: Tally, name: str, out: Path, regions_path: Path) -> str:
    """What was made of `name`, and what was left out, by reason, with the first of each."""
    regions = sum(tally.labels.values())
    common = ", ".join(f"{label} {count:,}" for label, count in tally.labels.most_common(_SHOWN_LABELS))
    rows = [
        ("images", f"{tally.images:,}", ""),
        ("regions", f"{regions:,}", f"{regions / tally.images:.1f} an image"),
        ("labels", f"{len(tally.labels):,}", common),
    ]
    if tally.left_out:
        rows.append(("left out", "", ""))
    for key, count in sorted(tally.left_out.items(), key=lambda item: (item[0][0], -item[1])):
        first = f". First: {_short(tally.first[key])}" if key in tally.first else ""
        rows.append((f"  {key[0]}", f"{count:,}", f"{key[1]}{first}"))
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{first:<{wide[0]}}  {count:>{wide[1]}}  {text}".rstrip() for first, count, text in rows]
    return "\n".join([f"{name} -> {out}", *lines, f"Stage 1 takes it as --regions_path {regions_path}"])


def _short(where: str) -> str:
    """Cut in the middle: a path begins it, numbers end it."""
    half = _SHOWN_WHERE // 2
    return where if len(where) <= _SHOWN_WHERE else f"{where[: half - 2]} ... {where[3 - half :]}"
