"""How large an image is as it is stored, which is the frame that regions are in.

Training reads pixels as they are stored: the EXIF tag that turns a photograph upright is not applied
(llava_pat/data/geometry.py). Regions for an image that was looked at upright would lie elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from llava_pat.data.images import UNREADABLE, open_image, unreadable

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def stored_size(path: Path, where: str) -> tuple[int, int]:
    """(height, width) from the header; DataError for a file that is no image."""
    with open_image(path, where) as image:
        return image.height, image.width


def is_sideways(path: Path, where: str) -> bool:
    """Whether a viewer turns the stored image by 90 degrees. Decodes some formats: not for every image."""
    with open_image(path, where) as image:
        try:
            return image.getexif().get(_ORIENTATION) in _SIDEWAYS
        except UNREADABLE as error:  # PIL decodes late
            raise unreadable(path, where, error) from error
