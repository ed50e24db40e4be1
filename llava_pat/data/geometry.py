"""Where a pixel of the image ends up in the tower's square: ONE affine for pixels, masks and boxes.

    CenterCrop   resize the shorter edge, cut out the middle S x S    (`image_aspect_ratio square` of CLIP and DINOv2)
    Squash       resize both edges to S, whatever the shape           (`image_aspect_ratio square` of SigLIP)
    Pad          centre on a square of the mean colour, resize to S   (`image_aspect_ratio pad`, LLaVA's stage 2)

    x_out = x * sx + dx        y_out = y * sy + dy

The sizes are the integers that the image processors and LLaVA's expand2square arrive at, roundings included, so sx and
sy of a crop differ a little. N = (S // patch)^2 patches, row-major: where a patch does not divide S (SigLIP: 384 by
14), the tower does not see the rest at the right and the bottom.
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

from llava_pat.data.images import MOST_PIXELS
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

    @abstractmethod
    def _between(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest image that `_square` makes of one of this size."""

    def refuse_shape(self, height: int, width: int) -> None:
        """DecompressionBombError for an image that is small itself, but so long that its square takes gigabytes."""
        tall, wide = self._between(height, width)
        if tall * wide > MOST_PIXELS:
            raise Image.DecompressionBombError(
                f"{height} x {width} (height x width) becomes {tall} x {wide} on its way to {self.size} x {self.size}, "
                f"more than {MOST_PIXELS} pixels"
            )

    def pixels(self, image: Image.Image) -> Tensor:
        """Any PIL image -> float32 [3, S, S], normalised: the image processor's values. Errors as `refuse_shape`."""
        self.refuse_shape(image.height, image.width)
        array = np.asarray(self._square(image.convert("RGB")))
        pixels = np.empty((3, self.size, self.size), np.float32)
        for channel, values in enumerate(_normalised(self.rescale, self.mean, self.std)):
            np.take(values, array[..., channel], out=pixels[channel], mode="clip")  # "raise" fills a copy of out
        return torch.from_numpy(pixels)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, 0-255, as LLaVA rounds it."""
        return tuple(int(value * 255) for value in self.mean)

    def blank(self) -> Tensor:
        """float32 [3, S, S]: an image of the mean colour, in the place of one that is missing."""
        return self.pixels(Image.new("RGB", (self.size, self.size), self.fill))

    def mask(self, mask: Tensor | np.ndarray) -> Tensor:
        """[h, w] of the original image -> float32 [S, S]: the share of each output pixel that the mask covers."""
        return self._shares(_batch(mask), self.size, self.size)[0]

    def coverage(self, mask: Tensor | np.ndarray, patch_size: int) -> Tensor:
        """[h, w] or [R, h, w] -> float32 [N] or [R, N] in [0, 1]: the mask's area share of every patch."""
        if not 1 <= patch_size <= self.size:
            raise DataError(f"an image of {self.size} pixels has no patches of {patch_size} pixels")
        masks = _batch(mask)
        grid = self.size // patch_size
        shares = self._shares(masks, grid, grid * patch_size).flatten(1)
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

    def _shares(self, masks: Tensor, cells: int, extent: int) -> Tensor:
        """[R, h, w] -> [R, cells, cells], which tile the first `extent` pixels: exact area shares, as two products."""
        _, height, width = masks.shape
        a = self.affine(height, width)
        rows = _overlaps(height, a.sy, a.dy, cells, extent)
        columns = _overlaps(width, a.sx, a.dx, cells, extent)
        shares = (rows @ masks @ columns.T).clamp_(0.0, 1.0)
        return torch.where(shares < _NOISE, 0.0, shares)


@dataclass(frozen=True)
class CenterCrop(Geometry):
    """Shorter edge to `edge` (S unless it is given), longer edge to int(edge * longer / shorter), the middle S x S."""

    edge: int | None = None  # pixels; at least S. DINOv2: 256 for S = 224

    def __post_init__(self) -> None:
        if self.edge is not None and self.edge < self.size:
            raise DataError(
                f"the shorter edge is resized to {self.edge} pixels, but {self.size} are cut out of it: the rest would "
                "be black. Make the image processor's shortest_edge at least its crop_size."
            )

    def affine(self, height: int, width: int) -> Affine:
        new_height, new_width = self._resized(height, width)
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        return Affine(new_width / width, new_height / height, -left, -top)

    def _between(self, height: int, width: int) -> tuple[int, int]:
        return self._resized(height, width)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        shorter = self.size if self.edge is None else self.edge
        longer = int(shorter * max(height, width) / min(height, width))
        return (shorter, longer) if width >= height else (longer, shorter)

    def _square(self, image: Image.Image) -> Image.Image:
        new_height, new_width = self._resized(image.height, image.width)
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        resized = image.resize((new_width, new_height), self.resample)
        return resized.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True)
class Squash(Geometry):
    """Both edges to S: nothing is lost, but what is not square is distorted."""

    def affine(self, height: int, width: int) -> Affine:
        return Affine(self.size / width, self.size / height, 0.0, 0.0)

    def _between(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def _square(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size), self.resample)


@dataclass(frozen=True)
class Pad(Geometry):
    """On a square of the longer side, offsets floored, the rest filled with int(255 * mean); then to S x S."""

    def affine(self, height: int, width: int) -> Affine:
        side = max(height, width)
        scale = self.size / side
        return Affine(scale, scale, (side - width) // 2 * scale, (side - height) // 2 * scale)

    def _between(self, height: int, width: int) -> tuple[int, int]:
        return max(height, width), max(height, width)

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        if image.width != image.height:
            padded = Image.new("RGB", (side, side), self.fill)
            padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = padded
        return image.resize((self.size, self.size), self.resample)


def geometry_for(aspect: str, image_processor: BaseImageProcessor) -> Geometry:
    """The geometry of `--image_aspect_ratio` with a tower's image processor: its sizes, its colours, its resampling.

    "square": what the processor itself does, a crop or a squash. "pad": padding to a square first, as LLaVA does it;
    what the processor then does to a square, beyond one resize to its output size, is left out (DINOv2 would cut the
    rim off again). Raises DataError for a processor that does something else: its pixels could not be reproduced.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"image_aspect_ratio {aspect!r} is unknown; there are: {', '.join(ASPECTS)}")
    name = type(image_processor).__name__
    settings = image_processor.to_dict()
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if settings.get(step) is not True]
    if off:
        raise DataError(f"{name} has {', '.join(off)} switched off or missing; it cannot be reproduced")
    if settings.get("do_pad"):
        raise DataError(f"{name} has do_pad switched on; padding is --image_aspect_ratio pad, switch it off there")
    numbers = {
        "mean": tuple(image_processor.image_mean),
        "std": tuple(image_processor.image_std),
        "resample": int(image_processor.resample),
        "rescale": float(image_processor.rescale_factor),
    }
    size = {key: value for key, value in dict(image_processor.size).items() if value is not None}
    if settings.get("do_center_crop"):
        side = _side(name, "crops", dict(image_processor.crop_size))
        if size.keys() != {"shortest_edge"}:
            raise DataError(f"{name} resizes to {size} before it crops; expected a shortest_edge, as CLIP's has")
        square = CenterCrop(side, **numbers, edge=None if size["shortest_edge"] == side else int(size["shortest_edge"]))
    else:
        side = _side(name, "resizes to", size)
        square = Squash(side, **numbers)
    return Pad(side, **numbers) if aspect == "pad" else square


@lru_cache
def _normalised(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [3, 256]: what each of 256 values becomes in a channel. To look up is faster than to compute."""
    values = np.arange(256, dtype=np.float32)[:, None] * np.float32(rescale)
    return np.ascontiguousarray(((values - np.array(mean, np.float32)) / np.array(std, np.float32)).T)


def _side(name: str, does: str, size: dict) -> int:
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise DataError(f"{name} {does} {size}; vision towers here take squares of a fixed height and width")
    return int(height)


def _batch(mask: Tensor | np.ndarray) -> Tensor:
    masks = torch.as_tensor(mask).to(torch.float32)
    return masks if masks.ndim == 3 else masks.unsqueeze(0)


@lru_cache(maxsize=32)  # the regions of an image, and images of one size, share it; callers only read it
def _overlaps(length: int, scale: float, offset: float, cells: int, extent: int) -> Tensor:
    """[cells, length]: which share of each output cell lies on each source pixel, along one axis.

    The area under a mask is separable because a pixel is a rectangle: share = rows @ mask @ columns^T.
    """
    edges = torch.arange(length + 1, dtype=torch.float64) * scale + offset
    cell = extent / cells
    starts = torch.arange(cells, dtype=torch.float64).unsqueeze(1) * cell
    inside = torch.minimum(edges[1:], starts + cell) - torch.maximum(edges[:-1], starts)
    return (inside.clamp_(min=0.0) / cell).to(torch.float32)
