"""An image file -> the pixels that training will see, decoded once for all stages.

Training opens with data.images.open_image and converts to RGB (data/geometry.py): grey, palette, 16-bit, CMYK and
transparent images become RGB as Pillow has it, and the EXIF tag that turns a photograph upright is NOT applied.
transformers' processors do apply it to an image that carries it (image_utils.load_image), so the tag must go: boxes and
masks would lie in another frame than training's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from llava_pat.data.images import open_image, unreadable
from llava_pat.types import DataError

BOMB_PIXELS = 89_478_485
"""Where Pillow begins to warn of decompression bombs: 1 GiB / 4 bytes / 3 channels."""


def decode_image(path: Path, where: str, max_pixels: int = BOMB_PIXELS) -> Image.Image:
    """RGB without metadata. DataError for a missing or broken file; TooLarge for more than max_pixels pixels.

    Pillow itself refuses twice BOMB_PIXELS while it reads the header; nothing is decoded before the size is known.
    """
    try:
        opened = open_image(path, where)
    except DataError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise TooLarge(str(error)) from error
        raise
    with opened as image:
        if image.width * image.height > max_pixels:
            raise TooLarge(f"{where}: image {path} is {image.width} x {image.height}, more than {max_pixels:,} pixels")
        try:
            pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # PIL decodes late; a broken PNG is a SyntaxError
            raise unreadable(path, where, error) from error
    return Image.fromarray(pixels)


class TooLarge(DataError):
    """An image of more pixels than are wanted."""
