"""What the page's interactive part gets: images, outlines, cosines and nearest words, as JSON in the page.

A cosine is one byte: round(127 cosine / scale), `scale` being the picture's largest |cosine|. So it is off by at most
scale / 254.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.evaluation.alignment.report.files import Picture, Pictures, Run
from llava_pat.evaluation.alignment.report.pictures import judge, outlines
from llava_pat.evaluation.alignment.report.style import RIGHT, WRONG, Look
from llava_pat.pages.figures import COLOURS, HEAT, data_uri

MOST_BYTES = 12_000_000  # of cosines, before base64: a page beyond 30 MB is slow to open
STEPS = 33  # colours of the heat map between which the page mixes


def explorer_data(run: Run, look: Mapping[str, Look], min_coverage: float) -> dict[str, Any]:
    """JSON for explorer.js, which says what each key is for. Same words and same pixels are stored once."""
    images: dict[str, int] = {}  # data URI -> number
    words: dict[tuple[str, ...], int] = {}
    checkpoints = []
    for name, pictures in run.pictures.items():
        vocabulary = Vocabulary(pictures.words[: pictures.vocabulary_size])
        kept = kept_words(pictures, MOST_BYTES // len(run.pictures))
        checkpoints.append(
            {
                "title": look[name].title,
                "words": words.setdefault(tuple(pictures.words[word] for word in kept), len(words)),
                "images": [_image(picture, vocabulary, kept, images, min_coverage) for picture in pictures.images],
            }
        )
    first = next(iter(run.pictures.values()))
    return {
        "pngs": list(images),
        "words": [list(entry) for entry in words],
        "checkpoints": checkpoints,
        "images": [{"name": image.name, "caption": image.caption} for image in first.images],
        "start": _first_word(first),
        "heat": [to_hex(matplotlib.colormaps[HEAT](step / (STEPS - 1))) for step in range(STEPS)],
        "colours": {"right": RIGHT, "wrong": WRONG, "regions": list(COLOURS)},
    }


def embedded_json(content: Any) -> str:
    """JSON for inside <script>: no text in it can end the element or open a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def packed(values: NDArray[np.float32]) -> dict[str, Any]:
    """{"scale", "bytes"}: base64 of int8 in row-major order. NaN counts as 0."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    steps = np.round(finite / (scale or 1.0) * 127).astype(np.int8)
    return {"scale": scale, "bytes": base64.b64encode(steps.tobytes()).decode("ascii")}


def png(pixels: NDArray[np.uint8]) -> bytes:
    """[H, W, 3]"""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def kept_words(pictures: Pictures, most_bytes: int) -> list[int]:
    """Which words the page has room for, as numbers in ascending order: those that its images show, then the first."""
    patches = sum(image.grid[0] * image.grid[1] for image in pictures.images)
    room = most_bytes // max(patches, 1)
    vocabulary = Vocabulary(pictures.words)
    seen = [word for image in pictures.images for label in image.labels for word in vocabulary.find(label)]
    return sorted(list(dict.fromkeys([*seen, *range(len(pictures.words))]))[:room])


def _image(
    picture: Picture, vocabulary: Vocabulary, kept: Sequence[int], images: dict[str, int], min_coverage: float
) -> dict[str, Any]:
    entries = [vocabulary.words[entry] for entry in picture.nearest_entry.tolist()] if vocabulary.words else []
    pool = sorted({*picture.nearest_words.ravel().tolist(), *entries})
    place = {word: number for number, word in enumerate(pool)}
    return {
        "png": images.setdefault(data_uri(png(picture.pixels), "image/png"), len(images)),
        "grid": list(picture.grid),
        "size": [picture.pixels.shape[1], picture.pixels.shape[0]],
        "regions": [
            {"label": label, "lines": lines}
            for label, lines in zip(picture.labels, outlines(picture.masks), strict=True)
        ],
        "cosine": packed(picture.cosine[:, kept].T),  # word by word: the page reads one word at a time
        "entry": [place[word] for word in entries],
        "judged": judge(picture, vocabulary, min_coverage).tolist(),
        "pool": pool,
        "nearest": [[place[word] for word in line] for line in picture.nearest_words.tolist()],
        "nearestCosine": packed(picture.nearest_cosine),
    }


def _first_word(pictures: Pictures) -> str:
    """A word that the first image shows, if there is one."""
    vocabulary = Vocabulary(pictures.words)
    for image in pictures.images:
        for label in image.labels:
            found = vocabulary.find(label)
            if found:
                return pictures.words[found[0]]
    return pictures.words[0] if pictures.words else ""
