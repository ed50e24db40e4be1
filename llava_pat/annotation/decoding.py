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

from llava_pat.data.images import TOO_LARGE, UNREADABLE, open_image, unreadable
from llava_pat.types import DataError

BOMB_PIXELS = 89_478_485
"""Where Pillow begins to warn of decompression bombs: 1 GiB / 4 bytes / 3 channels."""


def decode_image(path: Path, where: str, max_pixels: int = BOMB_PIXELS) -> Image.Image:
    """RGB without metadata. DataError, with a kind of data/images.py, for a file that is missing, broken or too large.

    Pillow itself refuses twice BOMB_PIXELS while it reads the header; nothing is decoded before the size is known.
    """
    with open_image(path, where) as image:
        if image.width * image.height > max_pixels:
            raise DataError(
                f"{where}: image {path} is {image.width} x {image.height}, more than {max_pixels:,} pixels", TOO_LARGE
            )
        try:
            pixels = np.asarray(image.convert("RGB"))
        except UNREADABLE as error:  # PIL decodes late
            raise unreadable(path, where, error) from error
    return Image.fromarray(pixels)
