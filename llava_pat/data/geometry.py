"""Where a pixel of the image ends up in the tower's square: ONE affine for pixels, masks and boxes.

    CenterCrop   resize the shorter edge to S, cut out the middle     (LLaVA's stage 1, `image_aspect_ratio square`)
    Pad          centre on a square of the mean colour, resize to S   (LLaVA's stage 2, `image_aspect_ratio pad`)

    x_out = x * sx + dx        y_out = y * sy + dy

The sizes are the integers that CLIPImageProcessor and LLaVA's expand2square arrive at, roundings included, so sx and
sy of a crop differ a little. N = (S / patch)^2 patches, row-major.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from llava_pat.types import DataError

Box = tuple[float, float, float, float]
ASPECTS = ("square", "pad")
_NOISE = 1e-6  # a share below this is rounding at an edge, not a pixel: it must not count as "covered"


@dataclass(frozen=True)
class Affine:
    """From original pixel coordinates (edges, not centres) to those of the square."""

    sx: float
    sy: float
    dx: float
    dy: float


@dataclass(frozen=True)
class Geometry(ABC):
    """How images become [3, S, S]. Build it with `geometry_for`; it holds the image processor's numbers."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = Image.Resampling.BICUBIC
    rescale: float = 1 / 255

    @abstractmethod
    def affine(self, height: int, width: int) -> Affine:
        """The affine for an image of this size."""

    @abstractmethod
    def _square(self, image: Image.Image) -> Image.Image:
        """RGB image of any size -> S x S."""

    def pixels(self, image: Image.Image) -> Tensor:
        """Any PIL image -> float32 [3, S, S], normalised: CLIPImageProcessor's values."""
        array = np.asarray(self._square(image.convert("RGB")), dtype=np.float32) * np.float32(self.rescale)
        array = (array - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def mask(self, mask: Tensor | np.ndarray) -> Tensor:
        """[h, w] of the original image -> float32 [S, S]: the share of each output pixel that the mask covers."""
        return self._shares(_batch(mask), self.size)[0]

    def coverage(self, mask: Tensor | np.ndarray, patch_size: int) -> Tensor:
        """[h, w] or [R, h, w] -> float32 [N] or [R, N] in [0, 1]: the mask's area share of every patch."""
        if patch_size < 1 or self.size % patch_size:
            raise DataError(f"patches of {patch_size} pixels do not divide the image of {self.size} pixels evenly")
        masks = _batch(mask)
        shares = self._shares(masks, self.size // patch_size).flatten(1)
        return shares[0] if np.ndim(mask) == 2 else shares

    def box(self, xyxy: Box, height: int, width: int) -> Box:
        """x0, y0, x1, y1 in original pixels -> in pixels of the square, clipped to it (an empty box lies outside)."""
        a = self.affine(height, width)
        x0, y0, x1, y1 = xyxy
        moved = (x0 * a.sx + a.dx, y0 * a.sy + a.dy, x1 * a.sx + a.dx, y1 * a.sy + a.dy)
        return tuple(min(max(value, 0.0), float(self.size)) for value in moved)

    def normalized_box(self, xyxy: Box, height: int, width: int) -> Box:
        """The moved box in 0-1 of the square: with Pad, the convention of LLaVA's referring data."""
        return tuple(value / self.size for value in self.box(xyxy, height, width))

    def _shares(self, masks: Tensor, cells: int) -> Tensor:
        """[R, h, w] -> [R, cells, cells]: exact area shares, as two small matrix products."""
        _, height, width = masks.shape
        a = self.affine(height, width)
        rows = _overlaps(height, a.sy, a.dy, cells, self.size)
        columns = _overlaps(width, a.sx, a.dx, cells, self.size)
        shares = (rows @ masks @ columns.T).clamp_(0.0, 1.0)
        return torch.where(shares < _NOISE, 0.0, shares)


@dataclass(frozen=True)
class CenterCrop(Geometry):
    """Shorter edge to S, longer edge to int(S * longer / shorter), the middle S x S."""

    def affine(self, height: int, width: int) -> Affine:
        new_height, new_width = self._resized(height, width)
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        return Affine(new_width / width, new_height / height, -left, -top)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if width >= height else (longer, self.size)

    def _square(self, image: Image.Image) -> Image.Image:
        new_height, new_width = self._resized(image.height, image.width)
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        resized = image.resize((new_width, new_height), self.resample)
        return resized.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True)
class Pad(Geometry):
    """On a square of the longer side, offsets floored, the rest filled with int(255 * mean); then to S x S."""

    @property
    def fill(self) -> tuple[int, int, int]:
        return tuple(int(value * 255) for value in self.mean)

    def affine(self, height: int, width: int) -> Affine:
        side = max(height, width)
        scale = self.size / side
        return Affine(scale, scale, (side - width) // 2 * scale, (side - height) // 2 * scale)

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        if image.width != image.height:
            padded = Image.new("RGB", (side, side), self.fill)
            padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = padded
        return image.resize((self.size, self.size), self.resample)


def geometry_for(aspect: str, image_processor: BaseImageProcessor) -> Geometry:
    """The geometry of `--image_aspect_ratio` ("square" or "pad") with a CLIP image processor's sizes and numbers.

    Raises DataError for a processor that does something else than CLIP's: its pixels could not be reproduced.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"image_aspect_ratio {aspect!r} is unknown; there are: {', '.join(ASPECTS)}")
    name = type(image_processor).__name__
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    off = [step for step in steps if image_processor.to_dict().get(step) is not True]
    if off:
        raise DataError(f"{name} has {', '.join(off)} switched off or missing; only CLIP's preprocessing is supported")
    size = image_processor.size["shortest_edge"]
    crop = image_processor.crop_size
    if size is None or (crop["height"], crop["width"]) != (size, size):
        raise DataError(
            f"{name} resizes to {dict(image_processor.size)} and crops {crop['height']}x{crop['width']}; "
            "CLIP's preprocessing resizes the shortest edge to the side of a square crop"
        )
    return (Pad if aspect == "pad" else CenterCrop)(
        size=int(size),
        mean=tuple(image_processor.image_mean),
        std=tuple(image_processor.image_std),
        resample=int(image_processor.resample),
        rescale=float(image_processor.rescale_factor),
    )


def _batch(mask: Tensor | np.ndarray) -> Tensor:
    masks = torch.as_tensor(mask).to(torch.float32)
    return masks if masks.ndim == 3 else masks.unsqueeze(0)


@lru_cache(maxsize=32)  # the regions of an image, and images of one size, share it; callers only read it
def _overlaps(length: int, scale: float, offset: float, cells: int, size: int) -> Tensor:
    """[cells, length]: which share of each output cell lies on each source pixel, along one axis.

    The area under a mask is separable because a pixel is a rectangle: share = rows @ mask @ columns^T.
    """
    edges = torch.arange(length + 1, dtype=torch.float64) * scale + offset
    cell = size / cells
    starts = torch.arange(cells, dtype=torch.float64).unsqueeze(1) * cell
    inside = torch.minimum(edges[1:], starts + cell) - torch.maximum(edges[:-1], starts)
    return (inside.clamp_(min=0.0) / cell).to(torch.float32)
