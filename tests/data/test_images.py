"""Files in an image folder that are no pictures, or pictures only to their header."""

from __future__ import annotations

import os
import shutil
import threading
import zlib

import pytest
from PIL import Image

from llava_pat.data.geometry import CenterCrop, Pad, Squash
from llava_pat.data.images import BROKEN, MOST_PIXELS, TOO_LARGE, UNREADABLE, check_image, open_image
from llava_pat.types import DataError
from tests.faults.pictures import POSTSCRIPT, chunk, png

NUMBERS = {"size": 336, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_the_limit_is_pils():
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (png(100_000, 100_000, pixels=b""), TOO_LARGE),
        (png(20_000, 9_000, pixels=b""), TOO_LARGE),
        (png(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))), BROKEN),
        (png(4, 4, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))), BROKEN),
    ],
)
def test_bombs_are_refused_by_their_header(tmp_path, content, kind):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="a.png") as caught:
        check_image(tmp_path / "a.png", "decode")
    assert caught.value.kind == kind


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1)])
def test_a_line_of_pixels_that_a_square_of_would_fill_memory(tmp_path, width, height):
    """Its shorter edge becomes 336 pixels, or it is padded to 100,000 x 100,000."""
    (tmp_path / "a.png").write_bytes(png(width, height))
    assert check_image(tmp_path / "a.png", "decode").size == (height, width)
    for geometry in (CenterCrop(**NUMBERS), CenterCrop(**NUMBERS, edge=400), Pad(**NUMBERS)):
        with open_image(tmp_path / "a.png") as image, pytest.raises(UNREADABLE, match=f"{height} x {width}"):
            geometry.pixels(image)
    with open_image(tmp_path / "a.png") as image:
        assert Squash(**NUMBERS).pixels(image).shape == (3, 336, 336)
    # 1500 : 1 is still an image
    assert CenterCrop(**NUMBERS).pixels(Image.new("RGB", (1500, 1))).shape == (3, 336, 336)


def test_a_pipe_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    said = []

    def look() -> None:
        with pytest.raises(DataError, match="a.png cannot be read .no file but a folder, a pipe or a device") as caught:
            check_image(tmp_path / "a.png")
        said.append(caught.value.kind)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert said == [BROKEN]
    with pytest.raises(DataError, match="no file but a folder"):
        check_image(tmp_path)


def test_a_script_is_no_image(tmp_path, monkeypatch):
    """PIL would hand PostScript to Ghostscript, which runs it."""
    mark = tmp_path / "executed"
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {mark}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    assert shutil.which("gs") == str(ghostscript)
    for name in ("a.png", "a.eps"):
        (tmp_path / name).write_bytes(POSTSCRIPT)
        with pytest.raises(DataError, match=f"{name} cannot be read .EPS is a program") as caught:
            check_image(tmp_path / name, "decode")
        assert caught.value.kind == BROKEN
    assert not mark.exists()
    with pytest.raises(UNREADABLE), Image.open(tmp_path / "a.eps") as image:
        image.load()
    assert mark.exists(), "what is refused would have run"
