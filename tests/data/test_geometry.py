"""One affine: pixels equal CLIP's and LLaVA's, and masks and boxes land where the pixels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava_pat.data.geometry import CenterCrop, Pad, Squash, geometry_for
from llava_pat.types import DataError

PATCH = 14
SIZES = [(64, 200), (301, 77), (150, 90), (112, 112), (113, 111), (40, 41), (337, 600)]  # (width, height)


@pytest.fixture(scope="module")
def processor(assets):
    return CLIPImageProcessor.from_pretrained(assets / "clip")


def test_pixels_equal_llavas(golden, assets, processor):
    """Tolerance: values are of order 1 and went through a float32 rescale and a float32 normalisation."""
    assert {case["aspect"] for case in golden["pixels"]} == {"square", "pad"}
    for case in golden["pixels"]:
        with Image.open(assets / "images" / case["image"]) as image:
            pixels = geometry_for(case["aspect"], processor).pixels(image)
        assert list(pixels.shape) == case["shape"] and pixels.dtype == torch.float32
        assert torch.allclose(pixels.mean((1, 2)), torch.tensor(case["mean"]), atol=2e-6)
        assert torch.allclose(pixels[:, ::16, ::16].flatten(), torch.tensor(case["sample"]), atol=2e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_clips(processor, size, mode):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    expected = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
    assert torch.allclose(geometry_for("square", processor).pixels(image), expected, atol=2e-6)


SIGLIP = SiglipImageProcessorPil(size={"height": 112, "width": 112})
DINOV2 = BitImageProcessorPil(
    size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112},
    image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
)  # fmt: skip


@pytest.mark.parametrize(("other", "kind"), [(SIGLIP, Squash), (DINOV2, CenterCrop)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_other_towers_own(other, kind, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    geometry = geometry_for("square", other)
    assert type(geometry) is kind
    expected = other(image, return_tensors="pt").pixel_values[0]
    assert torch.allclose(geometry.pixels(image), expected, atol=2e-6)


@pytest.mark.parametrize("other", [SIGLIP, DINOV2])
def test_pad_is_the_same_for_every_tower(other):
    """The whole image on a square of that tower's mean colour, one resize: what SigLIP's processor does to a square."""
    image = Image.effect_noise((120, 60), 90).convert("RGB")
    geometry = geometry_for("pad", other)
    assert geometry.fill == tuple(int(255 * value) for value in other.image_mean)
    square = Image.new("RGB", (120, 120), geometry.fill)
    square.paste(image, (0, 30))
    same = SiglipImageProcessorPil(
        size={"height": 112, "width": 112}, image_mean=other.image_mean, image_std=other.image_std
    )
    assert torch.allclose(geometry.pixels(image), same(square, return_tensors="pt").pixel_values[0], atol=2e-6)


def numbers(kind):
    return kind(size=112, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def wide_crop(size, mean, std):
    """DINOv2's kind: the shorter edge is longer than the crop."""
    return CenterCrop(size, mean, std, edge=128)


KINDS = [CenterCrop, wide_crop, Squash, Pad]


def white_square(size, box):
    """A black image of `size` with one white rectangle, and its mask."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return Image.fromarray(mask * 255).convert("RGB"), mask


def brightness(pixels):
    """[3, S, S] -> [N]: mean of every patch, row-major, by plain slicing."""
    side = pixels.shape[-1] // PATCH
    cut = [slice(PATCH * k, PATCH * (k + 1)) for k in range(side)]
    return torch.stack([pixels[0, rows, columns].mean() for rows in cut for columns in cut])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [*SIZES, (640, 480), (480, 640)])
def test_bright_patches_are_the_masks_patches(kind, size):
    """White square: portrait, landscape, crop, pad. Bicubic ringing and blur move a patch's mean by a few percent."""
    geometry = numbers(kind)
    width, height = size
    generator = np.random.default_rng(width)
    for _ in range(6):
        x0, y0 = int(generator.integers(0, width // 2)), int(generator.integers(0, height // 2))
        x1, y1 = int(generator.integers(x0 + width // 4, width)), int(generator.integers(y0 + height // 4, height))
        box = (x0, y0, x1, y1)
        image, mask = white_square(size, box)
        seen = brightness(geometry.pixels(image))
        coverage = geometry.coverage(mask, PATCH)
        assert coverage.dtype == torch.float32 and coverage.shape == (64,)
        assert torch.allclose(seen, coverage, atol=0.06)
        assert bool((coverage[seen > 0.56] > 0.5).all()) and bool((seen[coverage > 0.56] > 0.5).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_mask_coverage_and_box_agree(kind, size):
    geometry = numbers(kind)
    box = (size[0] // 4, size[1] // 3, size[0] // 2, size[1] - 5)
    _, mask = white_square(size, box)
    moved = geometry.mask(mask)
    assert moved.shape == (112, 112) and float(moved.min()) >= 0 and float(moved.max()) <= 1
    assert torch.allclose(brightness(moved.unsqueeze(0)), geometry.coverage(mask, PATCH), atol=1e-5)
    x0, y0, x1, y1 = geometry.box(box, size[1], size[0])
    assert float(moved.sum()) == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-4)
    rows, columns = torch.nonzero(moved > 1e-3, as_tuple=True)
    first = 1e-3  # an edge that falls on a pixel's edge may be off by rounding
    assert (int(rows.min()), int(columns.min())) == (int(y0 + first), int(x0 + first))
    assert (int(rows.max()), int(columns.max())) == (int(y1 - first), int(x1 - first))


def test_crop_by_hand():
    """200 x 100 -> 224 x 112, left 56 cut off: x -> 1.12 x - 56."""
    geometry = numbers(CenterCrop)
    assert geometry.box((50, 0, 150, 100), 100, 200) == pytest.approx((0, 0, 112, 112))
    assert geometry.box((60, 25, 100, 50), 100, 200) == pytest.approx((11.2, 28, 56, 56))
    _, mask = white_square((200, 100), (0, 0, 50, 100))
    assert geometry.coverage(mask, PATCH).sum() == 0, "the crop removes it, to the pixel"
    # 301 x 77: int(112 * 301 / 77) = 437, left = (437 - 112) // 2 = 162
    affine = geometry.affine(77, 301)
    assert (affine.sx, affine.sy, affine.dx, affine.dy) == (437 / 301, 112 / 77, -162, 0)


def test_pad_by_hand():
    """200 x 100 on 200 x 200, 50 rows above: the image is rows 28 to 84 of 112."""
    geometry = numbers(Pad)
    assert geometry.box((0, 0, 200, 100), 100, 200) == pytest.approx((0, 28, 112, 84))
    assert geometry.normalized_box((20, 10, 100, 100), 100, 200) == pytest.approx((0.1, 0.3, 0.5, 0.75))
    assert geometry.affine(101, 200).dy == 49 * 112 / 200, "an odd rest is floored above, as expand2square does"
    everything = np.ones((100, 200), np.uint8)
    coverage = geometry.coverage(everything, PATCH).reshape(8, 8)
    assert torch.equal(coverage.sum(1), torch.tensor([0.0, 0, 8, 8, 8, 8, 0, 0]))


def test_partial_coverage_by_hand():
    """112 x 112 stays as it is: 7 of 14 columns and 7 of 14 rows of a patch are a quarter of it."""
    _, mask = white_square((112, 112), (7, 7, 28, 14))
    coverage = numbers(CenterCrop).coverage(mask, PATCH)
    assert coverage[:3].tolist() == pytest.approx([0.25, 0.5, 0])
    assert coverage[3:].sum() == 0


def test_coverage_of_several_masks_at_once():
    geometry = numbers(Pad)
    masks = (np.random.default_rng(0).random((3, 50, 80)) > 0.5).astype(np.uint8)
    together = geometry.coverage(masks, PATCH)
    assert torch.allclose(together, torch.stack([geometry.coverage(mask, PATCH) for mask in masks]))


def test_wide_crop_by_hand():
    """256 x 128 stays as it is with edge 128; the crop takes 8 off above and 72 off at the left."""
    affine = numbers(wide_crop).affine(128, 256)
    assert (affine.sx, affine.sy, affine.dx, affine.dy) == (1, 1, -72, -8)


def test_squash_by_hand():
    assert numbers(Squash).box((50, 0, 150, 100), 100, 200) == pytest.approx((28, 0, 84, 112))


def test_a_rest_that_is_no_patch_is_nobodys():
    """112 pixels in patches of 15: 7 x 7, and 7 pixels at the right and the bottom are seen by none."""
    _, mask = white_square((112, 112), (90, 0, 112, 112))
    coverage = numbers(Squash).coverage(mask, 15).reshape(7, 7)
    assert torch.equal(coverage.sum(0), torch.tensor([0.0, 0, 0, 0, 0, 0, 7]))
    _, rest = white_square((112, 112), (105, 0, 112, 112))
    assert numbers(Squash).coverage(rest, 15).sum() == 0


def test_pads_with_the_mean_colour(processor):
    assert geometry_for("pad", processor).fill == (122, 116, 104)


def test_refusals(processor, assets):
    with pytest.raises(ValueError, match="'anyres' is unknown; there are: square, pad"):
        geometry_for("anyres", processor)
    with pytest.raises(DataError, match="do_normalize switched off"):
        geometry_for("pad", CLIPImageProcessor.from_pretrained(assets / "clip", do_normalize=False))
    crop = {"height": 96, "width": 112}
    with pytest.raises(DataError, match="crops .*96.* squares of a fixed height and width"):
        geometry_for("pad", CLIPImageProcessor.from_pretrained(assets / "clip", crop_size=crop))
    crop = {"height": 128, "width": 128}
    with pytest.raises(DataError, match="resized to 112 pixels, but 128 are cut out"):
        geometry_for("square", CLIPImageProcessor.from_pretrained(assets / "clip", crop_size=crop))
    with pytest.raises(DataError, match="resizes to .*shortest_edge.*fixed height and width"):
        geometry_for("square", CLIPImageProcessor.from_pretrained(assets / "clip", do_center_crop=False))
    with pytest.raises(DataError, match="do_pad switched on"):
        geometry_for("pad", CLIPImageProcessor.from_pretrained(assets / "clip", do_pad=True))
    with pytest.raises(DataError, match="an image of 112 pixels has no patches of 113 pixels"):
        numbers(Pad).coverage(np.ones((4, 4)), 113)
