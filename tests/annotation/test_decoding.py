"""What the stages see is what training sees: every mode, sideways images, bombs, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from llava_pat.annotation.decoding import BOMB_PIXELS, decode_image
from llava_pat.data.geometry import CenterCrop
from llava_pat.data.images import open_image
from llava_pat.types import DataError
from tests.annotation import tiny_models

GEOMETRY = CenterCrop(size=28, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def save(path: Path, mode: str, **options) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode in ("RGBA", "CMYK"):
        image = Image.fromarray(noise, mode)
    elif mode == "P":
        image = Image.fromarray(noise[..., :3]).quantize(16)
    else:
        image = Image.fromarray(noise[..., :3]).convert(mode)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "grey.png"), ("LA", "grey_alpha.png"), ("RGBA", "alpha.png"), ("P", "palette.png"), ("1", "bits.png"),
        ("I;16", "deep.png"), ("CMYK", "print.jpg"), ("L", "grey.jpg"), ("RGB", "rgb.webp"), ("P", "palette.gif"),
        ("I;16", "deep.tif"), ("CMYK", "print.tif"),
    ],
)  # fmt: skip
def test_every_mode_is_trainings(tmp_path: Path, mode: str, name: str) -> None:
    path = save(tmp_path / name, mode)
    ours = decode_image(path, "here")
    assert ours.mode == "RGB" and (ours.height, ours.width) == (40, 60) and not ours.info
    with open_image(path, "here") as image:
        assert (GEOMETRY.pixels(image) == GEOMETRY.pixels(ours)).all()
        assert (np.asarray(image.convert("RGB")) == np.asarray(ours)).all()


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_turned_images_stay_as_they_are_stored(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / name, "RGB", exif=exif)
    ours = decode_image(path, "here")
    with open_image(path, "here") as image:
        assert (GEOMETRY.pixels(image) == GEOMETRY.pixels(ours)).all()
        turned = load_image(image.copy())
        assert not np.array_equal(np.asarray(turned.convert("RGB")), np.asarray(ours)), "transformers does turn it"
        converted = load_image(image.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(ours)), np.asarray(ours)), "what the stages get cannot be turned"
    assert not np.array_equal(np.asarray(converted), np.asarray(ours)), "convert() alone keeps the tag"


def test_a_processor_sees_the_stored_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", "RGB", exif=exif)
    from transformers import SamImageProcessorPil

    folder = tiny_models.save_sam(tmp_path / "sam")
    inputs = SamImageProcessorPil.from_pretrained(folder)(images=[decode_image(path, "here")], return_tensors="pt")
    assert inputs["original_sizes"].tolist() == [[40, 60]]


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (14_000, 14_000)).save(path)  # beyond what Pillow opens
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(path, "here")
    path = save(tmp_path / "small.png", "RGB")
    with pytest.raises(DataError, match="60 x 40, more than 2,399 pixels"):
        decode_image(path, "here", 2399)
    assert decode_image(path, "here", 2400).width == 60
    assert BOMB_PIXELS == Image.MAX_IMAGE_PIXELS


def test_broken_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", "RGB").read_bytes()
    jpeg = save(tmp_path / "whole.jpg", "RGB").read_bytes()
    for name, content in {
        "cut.png": whole[: len(whole) // 2], "cut.jpg": jpeg[: len(jpeg) // 2], "text.png": b"no", "empty.jpg": b"",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"here: image .*{name} cannot be read"):
            decode_image(tmp_path / name, "here")
    with pytest.raises(DataError, match="does not exist"):
        decode_image(tmp_path / "nowhere.png", "here")
