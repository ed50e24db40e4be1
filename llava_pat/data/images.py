"""Image files: found, opened, sized and looked at, with errors that name the record and the path.

What is decoded is what LLaVA decodes, `Image.open(path).convert("RGB")`: CMYK, grey, alpha and palettes become RGB, an
EXIF rotation is not applied, and 16-bit grey is clipped at 255.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from llava_pat.types import DataError

Depth = Literal["header", "verify", "decode"]
"""How closely an image is looked at: its header; its body where that is cheap; every pixel, as training does."""

MOST_PIXELS = 178_956_970
"""Of an image; beyond it PIL opens none (2 x Image.MAX_IMAGE_PIXELS)."""

MISSING, BROKEN, TOO_LARGE = "image_missing", "image_broken", "image_too_large"
_TAIL = 4096  # a whole JPEG has its end marker in its last bytes; trailing metadata is allowed this much
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp")  # tried in this order
_FORMATS = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",), ".gif": ("GIF",), ".webp": ("WEBP",)}
# What PIL raises for a file that is no whole image, also late, when it decodes: a broken PNG is a SyntaxError.
_PROGRAMS = ("EPS",)  # by Ghostscript
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFacts:
    """What a look at an image file found."""

    path: Path
    size: tuple[int, int]  # (height, width) as stored, before any EXIF rotation: what training sees
    bytes: int  # of the file
    format: str  # PIL's word, such as JPEG
    mode: str  # PIL's word, such as CMYK
    rotated: bool  # by EXIF, which training does not apply

    @property
    def format_differs(self) -> bool:
        """The extension promises another format; the content counts."""
        promised = _FORMATS.get(self.path.suffix.lower())
        return promised is not None and self.format not in promised


def with_other_extension(path: Path) -> Path:
    """`path`, or where nothing is there the first file beside it that has another image extension, in lower or upper
    case. A name without an image extension is left as it is: "v1.2" is not "v1.jpg"."""
    if path.suffix.lower() not in _EXTENSIONS or os.path.exists(path):
        return path
    for extension in (*_EXTENSIONS, *map(str.upper, _EXTENSIONS)):
        other = path.with_suffix(extension)
        if os.path.exists(other):
            return other
    return path


def open_image(path: Path, where: str = "") -> Image.Image:
    """Image.open with errors that name the path, and `where` it is asked for.

    Only files: a named pipe, which an archive may hold, would wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("no file but a folder, a pipe or a device")
        return open_pixels(path)
    except UNREADABLE as error:
        if not os.path.exists(path):  # also where the name is too long to be one
            raise DataError(f"{_prefix(where)}image {path} does not exist", MISSING) from error
        raise unreadable(path, where, error) from error


def open_pixels(source: Path | BinaryIO) -> Image.Image:
    """Image.open, less the formats that PIL hands to another program, which would run what stands in the file.

    Raises one of UNREADABLE.
    """
    image = Image.open(source)
    if image.format in _PROGRAMS:
        image.close()
        raise OSError(f"{image.format} is a program, which would be run to see the image")
    return image


def unreadable(path: Path, where: str, error: Exception) -> DataError:
    """The error for a file that is there but is not a whole image."""
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{_prefix(where)}image {path} is too large ({error}); make it smaller", TOO_LARGE)
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    size = f"{path.stat().st_size} bytes" if os.path.exists(path) else "it is gone now"
    return DataError(f"{_prefix(where)}image {path} cannot be read ({reason}; {size}); fetch it again", BROKEN)


def check_image(path: Path, depth: Depth = "verify") -> ImageFacts:
    """What the file holds. DataError when it is not there, no image, or no whole one as far as `depth` looks.

    "verify" decodes only what PIL cannot verify without: a JPEG that looks cut off, and GIF, WebP and the like.
    """
    with open_image(path) as image:
        facts = ImageFacts(
            path, (image.height, image.width), path.stat().st_size, image.format or "", image.mode, _rotated(image)
        )
        if depth == "header":
            return facts
        try:
            image.verify()
        except UNREADABLE as error:
            raise unreadable(path, "", error) from error
    whole = facts.format == "PNG" or (facts.format in ("JPEG", "MPO") and _has_jpeg_end(path))
    if depth == "decode" or not whole:
        with open_image(path) as image:
            try:
                image.convert("RGB")
            except UNREADABLE as error:
                raise unreadable(path, "", error) from error
    return facts


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _rotated(image: Image.Image) -> bool:
    if "exif" not in image.info:  # getexif would decode a PNG to look for one
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except UNREADABLE:  # an EXIF that nobody can read rotates nothing
        return False


def _has_jpeg_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return b"\xff\xd9" in file.read()
