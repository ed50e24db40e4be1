"""A page: its head, a figure in it, and writing it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

from matplotlib.figure import Figure

_INCH = 96  # CSS pixels
_HALF = 600  # CSS pixels: two narrower figures stand beside each other


def head(title: str, css: str = "") -> Iterator[str]:
    """Up to the title above the text. css: the page's own, after what all pages share (page.css)."""
    shared = files("llava_pat.pages").joinpath("page.css").read_text(encoding="utf-8")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title>"
    yield f"<style>\n{shared}{css}</style>\n</head>\n<body>\n<main>"
    yield f"<h1>{escape(title)}</h1>"


def figure_html(title: str, caption: str, figure: Figure, source: str) -> str:
    """source: the figure as a data URI."""
    width, height = (round(inches * _INCH) for inches in figure.get_size_inches())
    narrow = ' class="narrow"' if width < _HALF else ""
    return (
        f'<figure{narrow}>\n<h3>{escape(title)}</h3>\n<img src="{source}" alt="{escape(title)}: {escape(caption)}" '
        f'width="{width}" height="{height}">\n<figcaption>{escape(caption)}</figcaption>\n</figure>'
    )


def write_whole(path: Path, parts: Iterable[str]) -> Path:
    """The parts, a line each, under the name when all of them are written."""
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text("\n".join(parts) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path
