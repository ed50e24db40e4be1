"""Image files: opened, sized and looked at, with errors that name the record and the path."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from llava_pat.types import DataError

_TAIL = 4096  # a whole JPEG has its end marker in its last bytes; trailing metadata is allowed this much


def open_image(path: Path, where: str) -> Image.Image:
    """Image.open with errors that name the record and the path."""
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{where}: image {path} does not exist") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise unreadable(path, where, error) from error


def unreadable(path: Path, where: str, error: Exception) -> DataError:
    """The error for a file that is there but is not a whole image."""
    reason = "not an image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(f"{where}: image {path} cannot be read ({reason}; {path.stat().st_size} bytes); fetch it again")


def check_image(path: Path, where: str) -> tuple[int, int]:
    """(height, width) from the header; the body is verified where that is cheap, decoded where it looks cut off."""
    with open_image(path, where) as image:
        size, kind = (image.height, image.width), image.format
        try:
            image.verify()
        except (OSError, SyntaxError) as error:  # PIL reports a broken PNG as a SyntaxError
            raise unreadable(path, where, error) from error
    if kind in ("JPEG", "MPO") and not _has_jpeg_end(path):
        with open_image(path, where) as image:
            try:
                image.load()
            except (OSError, SyntaxError) as error:
                raise unreadable(path, where, error) from error
    return size


def _has_jpeg_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return b"\xff\xd9" in file.read()
