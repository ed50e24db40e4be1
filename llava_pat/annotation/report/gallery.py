"""Images with the outlines and labels of their regions, as SVG inside of the page."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from llava_pat.annotation.decoding import decode_image
from llava_pat.annotation.report.measure import Grid, Line
from llava_pat.annotation.report.outlines import outline, path
from llava_pat.data.geometry import Geometry
from llava_pat.data.records import resolve_image
from llava_pat.data.regions import to_mask
from llava_pat.pages.figures import COLOURS, data_uri
from llava_pat.types import DataError

TILE = 290  # CSS pixels of a tile's side
_SIDE = 560  # pixels of the longer side in the page
_FEW = 160  # pixels: smaller images are shown as squares, not blurred
_LETTERS = 11.0  # CSS pixels
_WIDTH = 0.56  # of a letter, of its height, about
_MOST_TEXTS = 12  # labels that are written into an image
_MOST_SAID = 240  # letters of a caption


@dataclass(frozen=True)
class Said:
    """What the captions of an image say, and which of it has a region."""

    text: str
    nouns: tuple[str, ...]
    covered: tuple[bool, ...]


def tile(line: Line, grid: Grid, image_folder: Path | None, said: Said | None) -> str:
    """One image: outlines, labels; below it its name, its captions, all its labels."""
    entry = line.regions
    colours = {
        label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(r.label for r in entry.regions))
    }
    masks = [to_mask(region, entry.height, entry.width) for region in entry.regions]
    order = sorted(range(len(masks)), key=lambda i: -int(masks[i].sum()))
    scale = max(entry.width, entry.height) / TILE  # image pixels of a CSS pixel
    parts = [
        f'<svg viewBox="0 0 {entry.width} {entry.height}" role="img" aria-label="{escape(entry.image)}">',
        picture(entry.image, entry.width, entry.height, image_folder),
        _cut(grid.geometry, entry.height, entry.width),
    ]
    for i in order:  # small ones on top
        told = entry.regions[i].label + ("" if line.scores[i] is None else f", score {line.scores[i]:.2f}")
        lines = path(outline(masks[i]))
        parts.append(
            f'<g><title>{escape(told)}</title><path class="halo" d="{lines}"/>'
            f'<path d="{lines}" stroke="{colours[entry.regions[i].label]}"/></g>'
        )
    labels = [entry.regions[i].label for i in order[:_MOST_TEXTS]]
    places = place_texts([_box(masks[i]) for i in order[:_MOST_TEXTS]], labels, entry.width, entry.height, scale)
    for label, (x, y) in zip(labels, places, strict=True):
        parts.append(
            f'<text x="{x:.4g}" y="{y:.4g}" font-size="{_LETTERS * scale:.4g}" fill="{colours[label]}">'
            f"{escape(label)}</text>"
        )
    parts.append("</svg>")
    return f'<article class="tile">\n{"".join(parts)}\n{_below(line, colours, said)}</article>'


def picture(name: str, width: int, height: int, image_folder: Path | None) -> str:
    """The image as an SVG element of this size, or a grey field that says why there is none."""
    if image_folder is None:
        return _field(width, height, "")
    try:
        image = decode_image(resolve_image(image_folder, name), name)
    except DataError as error:
        return _field(width, height, str(error))
    wrong = ""
    if image.size != (width, height):
        wrong = _field(width, height, f"annotated at {width} x {height}, the image is {image.width} x {image.height}")
    few = ' class="few"' if max(image.size) < _FEW else ""
    source = data_uri(*_small(image))
    return f'<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none"{few}/>{wrong}'


def thumbnail(name: str, image_folder: Path | None) -> str:
    """A small <img>; nothing where there is no image that can be read."""
    if image_folder is None:
        return ""
    try:
        image = decode_image(resolve_image(image_folder, name), name)
    except DataError:
        return ""  # the table says why
    image.thumbnail((96, 96))
    return f'<img src="{data_uri(*_small(image))}" alt="" width="{image.width}" height="{image.height}">'


def place_texts(
    boxes: Sequence[tuple[float, float, float, float]], texts: Sequence[str], width: int, height: int, scale: float
) -> list[tuple[float, float]]:
    """Where each text is centred and its line stands: over its box, or where no other text is. Image pixels.

    boxes: x0, y0, x1, y1. scale: image pixels of a CSS pixel.
    """
    taken: list[tuple[float, float, float, float]] = []
    places = []
    size = _LETTERS * scale
    for (x0, y0, x1, y1), text in zip(boxes, texts, strict=True):
        half = min(_WIDTH * size * len(text), width) / 2
        x = min(max((x0 + x1) / 2, half), width - half)
        tries = [y0 - 0.3 * size, y0 + size, (y0 + y1 + size) / 2, y1 + size, y1 - 0.3 * size]
        lines = [min(max(y, size), height - 0.2 * size) for y in tries]
        steps = (lines[0] + sign * step * 1.25 * size for step in range(1, 8) for sign in (1, -1))
        lines += [y for y in steps if size <= y <= height - 0.2 * size]
        covers = [(x - half, y - size, x + half, y + 0.2 * size) for y in lines]
        free = next((i for i, cover in enumerate(covers) if not any(_meet(cover, other) for other in taken)), 0)
        taken.append(covers[free])
        places.append((x, lines[free]))
    return places


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _below(line: Line, colours: dict[str, str], said: Said | None) -> str:
    counts = Counter(region.label for region in line.regions.regions)
    chips = "".join(
        f'<li><b style="background:{colours[label]}"></b>{escape(label)}{f" × {count}" if count > 1 else ""}</li>'
        for label, count in counts.items()
    )
    parts = [f'<p class="file">{escape(line.regions.image)}</p>']
    if said is not None:
        text = said.text if len(said.text) <= _MOST_SAID else said.text[: _MOST_SAID - 1] + "…"
        parts.append(f"<p>{escape(text)}</p>")
    parts.append(f'<ul class="chips">{chips}</ul>')
    if said is not None and not all(said.covered):
        bare = (noun for noun, is_covered in zip(said.nouns, said.covered, strict=True) if not is_covered)
        parts.append(f'<p class="bare">no region: {escape(", ".join(bare))}</p>')
    return "\n".join(parts) + "\n"


def _cut(geometry: Geometry, height: int, width: int) -> str:
    """What stage 1 does not see is paler."""
    a = geometry.affine(height, width)
    x0, x1 = (min(max((edge - a.dx) / a.sx, 0.0), width) for edge in (0, geometry.size))
    y0, y1 = (min(max((edge - a.dy) / a.sy, 0.0), height) for edge in (0, geometry.size))
    if (x1 - x0) * (y1 - y0) > 0.999 * width * height:
        return ""
    inside = f"M{x0:.4g} {y0:.4g}V{y1:.4g}H{x1:.4g}V{y0:.4g}Z"
    return f'<path class="cut" d="M0 0H{width}V{height}H0Z{inside}"/><path class="edge" d="{inside}"/>'


def _field(width: int, height: int, text: str) -> str:
    """Grey, and what there is to say; a <foreignObject> breaks its lines."""
    field = f'<rect width="{width}" height="{height}" class="field"/>'
    if not text:
        return field
    size = _LETTERS * max(width, height) / TILE
    return (
        f'{field}<foreignObject width="{width}" height="{height}"><div class="why" style="font-size:{size:.4g}px">'
        f"{escape(text)}</div></foreignObject>"
    )


def _small(image: Image.Image) -> tuple[bytes, str]:
    """As the page has it: (bytes, kind)."""
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if max(image.size) < _FEW:
        image.save(buffer, format="png")
        return buffer.getvalue(), "image/png"
    image.save(buffer, format="jpeg", quality=85)
    return buffer.getvalue(), "image/jpeg"


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the pixels inside; the image's for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
