"""Bars of labels and nouns as HTML: a browser has the letters of every language, a figure's font has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Bar:
    """One word: its whole bar, of which a part may be filled."""

    word: str
    filled: int
    whole: int
    told: str
    """What stands behind it."""


def bars(title: str, caption: str, entries: Sequence[Bar]) -> str:
    """Longest first, as they come; the longest fills the width."""
    if not entries:
        return ""
    most = max(entry.whole for entry in entries)
    return (
        f'<figure class="words">\n<h3>{escape(title)}</h3>\n<table>\n{_lines(entries, most)}</table>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def _lines(entries: Iterable[Bar], most: int) -> str:
    return "".join(
        f'<tr><th scope=row title="{escape(entry.word)}">{escape(entry.word)}</th>'
        f'<td><i style="width:{100 * entry.filled / most:.2f}%"></i>'
        f'<i class="rest" style="width:{100 * (entry.whole - entry.filled) / most:.2f}%"></i></td>'
        f"<td>{escape(entry.told)}</td></tr>\n"
        for entry in entries
    )
