"""Objects from pixels' probabilities: connected pieces of a label's pixels, and the pixels of a box."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from llava_pat.annotation.stages import Corners
from playground.annotator.pixels import PixelProbabilities

_ALL_AROUND = np.ones((3, 3), bool)
"""Pixels that touch at a corner are connected."""


def find_pieces(inside: np.ndarray, reach: int) -> Iterator[np.ndarray]:
    """bool [h, w] -> its connected pieces, bool [h, w] each; 2 * reach pixels between two parts do not part them.

    An object behind a stroke of another is one.
    """
    joined = ndimage.binary_dilation(inside, _ALL_AROUND, iterations=reach) if reach else inside
    numbered, count = ndimage.label(joined, _ALL_AROUND)
    numbered[~inside] = 0
    for number in range(1, count + 1):
        yield numbered == number


def box_around(piece: np.ndarray) -> Corners:
    """Edges of the pixels inside, x0, y0, x1, y1."""
    rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def pixels_in_box(seen: PixelProbabilities, box: Corners, threshold: float) -> np.ndarray:
    """bool [h, w]: the pixels in the box of the kind and colour that fill it most; none where nothing does.

    Nobody says what is in the box: a segmenter is not told.
    """
    height, width = seen.kind.shape[1:]
    x0, y0, x1, y1 = (int(value) for value in (np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])))
    window = slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width))
    kinds, colours = seen.kind[(slice(1, None), *window)], seen.colour[(slice(1, None), *window)]
    filled = np.einsum("kyx,cyx->kc", kinds, colours)
    kind, colour = np.unravel_index(filled.argmax(), filled.shape)
    mask = np.zeros((height, width), bool)
    mask[window] = kinds[kind] * colours[colour] >= threshold
    return mask
