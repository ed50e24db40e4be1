"""Pictures that are small on the disk and large, endless or something else behind it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, more: bytes = b"", pixels: bytes | None = None) -> bytes:
    """An RGB picture of zeros; `pixels` instead of them."""
    body = zlib.compress(bytes(height * (width * 3 + 1))) if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    """A header alone."""
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"

BOMBS = {
    "a header of 10 billion pixels": png(100_000, 100_000, pixels=b""),
    "a header of 180 million pixels": png(20_000, 9_000, pixels=b""),
    "a BMP of 10^18 pixels": bmp(10**9, 10**9),
    "a comment of 100 MB": png(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
    "a colour profile of 100 MB": png(4, 4, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))),
    "a line of 100,000 pixels": png(100_000, 1),
    "a column of 100,000 pixels": png(1, 100_000),
    "no height": png(4, 0),
    "no pixels": png(40, 40, pixels=b""),
    "PostScript": POSTSCRIPT,
    "PostScript that lists files": POSTSCRIPT.replace(b"showpage", b"(*) {==} 255 string filenameforall showpage"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "HTML": b"<!DOCTYPE html><title>404</title>",
    "nothing": b"",
    "a text": b"version https://git-lfs.github.com/spec/v1\n",
}
"""Names and contents of files that must not become pixels. Lines of pixels: by the square that is made of them."""


def no_files(folder: Path, secret: Path) -> dict[str, str]:
    """What is no file, or none of the folder: description -> its name in the folder, made here."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    links = {
        "out.png": secret, "up.png": Path("..") / secret.name, "loop.png": "loop.png", "none.png": "absent.png",
        "zero.png": "/dev/zero", "folder-out": secret.parent,
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return {
        "a pipe": "pipe.png", "a folder": "folder.png", "a link out": "out.png", "a link up": "up.png",
        "a link to itself": "loop.png", "a link to nothing": "none.png", "a link to a device": "zero.png",
        "a file in a folder that is a link out": f"folder-out/{secret.name}", "an absolute name": str(secret),
        "a name with ..": f"../{secret.name}", "the folder itself": ".", "a name of 5000 letters": "a" * 5000,
        "a path of 5000 folders": "a/" * 5000 + "b.png", "half a character": "\ud800.png", "a zero byte": "a\0.png",
    }  # fmt: skip
