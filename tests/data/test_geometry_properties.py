"""Geometry and masks of any size: areas are kept, shares add up, runs are masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from llava_pat.data.geometry import CenterCrop, Geometry, Pad, Squash
from llava_pat.data.rle import mask_of_counts, mask_of_polygons

_MEAN = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
sides = st.integers(1, 90)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 40 * min(size))  # (height, width)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    size = draw(st.integers(8, 60))
    kind = draw(st.sampled_from([CenterCrop, Pad, Squash, "wide"]))
    return CenterCrop(size, *_MEAN, edge=size + draw(st.integers(0, 20))) if kind == "wide" else kind(size, *_MEAN)


@st.composite
def boxes(draw: st.DrawFn, size: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


@given(st.data(), geometries(), sizes)
def test_a_box_and_its_mask_cover_the_same_area(data, geometry: Geometry, size: tuple[int, int]) -> None:
    box = data.draw(boxes(size))
    patch = data.draw(st.integers(1, geometry.size))
    coverage = geometry.coverage(mask_of(box, size), patch)
    grid = geometry.size // patch
    assert coverage.shape == (grid * grid,) and coverage.dtype == torch.float32
    assert 0 <= float(coverage.min()) and float(coverage.max()) <= 1
    x0, y0, x1, y1 = geometry.box(box, *size)
    assert 0 <= x0 <= x1 <= geometry.size and 0 <= y0 <= y1 <= geometry.size
    seen = float(grid * patch)  # where the patch does not divide the square, its rest is nobody's
    area = max(0.0, min(x1, seen) - min(x0, seen)) * max(0.0, min(y1, seen) - min(y0, seen))
    assert float(coverage.sum()) * patch * patch == pytest.approx(area, rel=1e-3, abs=1e-3 * patch * patch)


@given(st.data(), geometries(), sizes)
def test_shares_of_parts_add_up(data, geometry: Geometry, size: tuple[int, int]) -> None:
    """A mask and what it leaves out are the whole image, in every patch."""
    mask = mask_of(data.draw(boxes(size)), size)
    patch = data.draw(st.integers(1, geometry.size))
    parts = geometry.coverage(np.stack([mask, 1 - mask, np.ones_like(mask)]), patch)
    assert torch.allclose(parts[0] + parts[1], parts[2], atol=1e-5)
    if isinstance(geometry, Squash):
        assert torch.allclose(parts[2], torch.ones(()), atol=1e-5)


@given(st.data(), geometries(), sizes)
def test_pixels_and_masks_move_together(data, geometry: Geometry, size: tuple[int, int]) -> None:
    """A white box is bright where its mask is: resampling blurs edges, so only cells clear of them are looked at."""
    assume(min(size) >= 4)
    mask = mask_of(data.draw(boxes(size)), size)
    plain = type(geometry)(geometry.size, (0.0,) * 3, (1.0,) * 3, **_edge(geometry))
    pixels = plain.pixels(Image.fromarray(mask * 255).convert("RGB"))
    assert pixels.shape == (3, geometry.size, geometry.size) and bool(torch.isfinite(pixels).all())
    moved = plain.mask(mask)
    reach = 1 + int(np.ceil(2 * max(1.0, plain.affine(*size).sx, plain.affine(*size).sy)))  # bicubic looks 2 pixels far
    near = torch.nn.functional.max_pool2d(moved[None], 2 * reach + 1, 1, reach)[0]
    far = -torch.nn.functional.max_pool2d(-moved[None], 2 * reach + 1, 1, reach)[0]
    clear = torch.zeros_like(moved, dtype=torch.bool)  # of what a crop has cut away, too
    clear[reach:-reach, reach:-reach] = True
    assert bool((pixels[0][clear & (near < 1e-3)] < 0.06).all())
    assert bool((pixels[0][clear & (far > 0.999)] > 0.94).all())


def _edge(geometry: Geometry) -> dict[str, int | None]:
    return {"edge": geometry.edge} if isinstance(geometry, CenterCrop) else {}


@given(st.data(), st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_counts_are_the_masks_they_were_made_of(data, size: tuple[int, int]) -> None:
    height, width = size
    flat, inside = [], False
    while len(flat) < height * width:
        flat += [int(inside)] * data.draw(st.integers(1, max(1, height * width // 3)))
        inside = not inside
    mask = np.array(flat[: height * width], np.uint8).reshape(width, height).T
    counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
    assert np.array_equal(mask_of_counts(counts, height, width), mask)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel()])))
    runs = np.diff(np.concatenate([[0], changes, [height * width]])).tolist()
    assert np.array_equal(mask_of_counts(runs, height, width), mask)


_characters = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20)


@given(_characters | st.lists(st.integers(-3, 200), max_size=8), sides, sides)
def test_any_counts_are_a_mask_or_refused(counts: str | list[int], height: int, width: int) -> None:
    try:
        found = mask_of_counts(counts, height, width)
    except ValueError:
        return
    assert found.shape == (height, width) and set(np.unique(found)) <= {0, 1}


_numbers = st.floats(-1e3, 1e3) | st.sampled_from([1e9, -1e9, 1e300, 0.0, -0.5])


@given(st.lists(st.lists(_numbers, min_size=6, max_size=14), min_size=1, max_size=3), sides, sides)
def test_any_polygons_are_a_mask_or_refused(polygons: list[list[float]], height: int, width: int) -> None:
    try:
        found = mask_of_polygons([polygon[: len(polygon) // 2 * 2] for polygon in polygons], height, width)
    except ValueError:
        return
    assert found.shape == (height, width) and set(np.unique(found)) <= {0, 1}
