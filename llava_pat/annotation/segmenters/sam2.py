"""SAM 2 and 2.1 (arXiv 2408.00714) on single images: a box in, its mask out.

transformers' Sam2ImageProcessor needs torchvision; what it does is little, so it is done here: resize both sides to the
model's, bilinear with anti-aliasing, scale, normalise. On the device, where transformers does it on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Sam2Model
from transformers.image_processing_utils import BaseImageProcessor

from llava_pat.annotation.pretrained import Placement, heights_and_widths, load_model
from llava_pat.annotation.segmenters.decode import decode_boxes, segment_in_batches
from llava_pat.annotation.stages import Corners, Images, Segmenter
from llava_pat.types import DataError

_TYPES = ("sam2", "sam2_video")
"""Those on the hub are for videos; what they have beyond an image model is left."""


@dataclass(frozen=True)
class Sam2Options:
    model: str = "facebook/sam2.1-hiera-large"
    mask_threshold: float = 0.0
    """Of the logits; the authors' and transformers' default."""
    multimask: bool = False
    """Three masks a box, of which the one with the best predicted IoU is taken."""
    batch_size: int = 4
    """Images at a time."""
    boxes_at_once: int = 64


class Sam2(Segmenter):
    """Masks of boxes."""

    Options = Sam2Options

    def __init__(self, options: Sam2Options, place: Placement) -> None:
        self.options, self._place = options, place
        self._model = load_model(Sam2Model, options.model, _TYPES, place, "segmenter")
        self._resize = SquarePixels.from_pretrained(options.model)

    def segment(self, images: Images, boxes: Sequence[Sequence[Corners]]) -> list[list[np.ndarray]]:
        return segment_in_batches(self._run, images, boxes, self.options.batch_size)

    @property
    def version(self) -> str:
        return f"sam2 {self.options.model}"

    @torch.inference_mode()
    def _run(self, images: list, boxes: list[Sequence[Corners]]) -> list[np.ndarray]:
        """Per image bool [boxes, H, W]."""
        pixels = torch.stack([self._resize(image, self._place.device) for image in images])
        with self._place.autocast():  # boxes are decoded in float32
            levels = [level.float() for level in self._model.get_image_embeddings(pixels)]
        results = []
        for i, (own, (height, width)) in enumerate(zip(boxes, heights_and_widths(images), strict=True)):
            scale = torch.tensor([self._resize.width / width, self._resize.height / height] * 2)  # x, y, x, y

            def upsample(logits: Tensor, size: tuple[int, int] = (height, width)) -> Tensor:
                full = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
                return full > self.options.mask_threshold

            results.append(
                decode_boxes(
                    self._model, [level[i : i + 1] for level in levels], torch.tensor(own) * scale, self._place,
                    upsample, self.options.multimask, self.options.boxes_at_once,
                )
            )  # fmt: skip
        return results


@dataclass(frozen=True)
class SquarePixels:
    """Pixels as SAM 2 wants them."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_pretrained(cls, name: str) -> SquarePixels:
        """Numbers of the folder's (or hub id's) preprocessor_config.json or processor_config.json."""
        try:
            numbers, _ = BaseImageProcessor.get_image_processor_dict(name)
            size = numbers["size"]
            return cls(size["height"], size["width"], tuple(numbers["image_mean"]), tuple(numbers["image_std"]))
        except (OSError, KeyError, TypeError) as error:
            raise DataError(f"segmenter {name}: has no image processor with size, image_mean, image_std") from error

    def __call__(self, image, device: str) -> Tensor:
        """float32 [3, H, W], normalised."""
        pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1).unsqueeze(0).float()
        size = (self.height, self.width)
        pixels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)[0]
        pixels = pixels.round().clamp(0, 255) / 255  # whole levels, as torchvision gives for uint8
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std
