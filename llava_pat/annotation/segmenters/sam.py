"""SAM (arXiv 2304.02643): a box in, its mask out. Images are encoded in batches, boxes decoded image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import SamModel

from llava_pat.annotation.pretrained import Placement, load_image_processor, load_model
from llava_pat.annotation.segmenters.decode import decode_boxes, segment_in_batches
from llava_pat.annotation.stages import Corners, Images, Segmenter


@dataclass(frozen=True)
class SamOptions:
    model: str = "facebook/sam-vit-huge"
    mask_threshold: float = 0.0
    """Of the logits; the authors' and transformers' default."""
    multimask: bool = False
    """Three masks a box, of which the one with the best predicted IoU is taken. The authors' notebook takes one for a
    box, as Grounded-SAM does."""
    batch_size: int = 4
    """Images at a time."""
    boxes_at_once: int = 64


class Sam(Segmenter):
    """Masks of boxes."""

    Options = SamOptions

    def __init__(self, options: SamOptions, place: Placement) -> None:
        self.options, self._place = options, place
        self._model = load_model(SamModel, options.model, ("sam",), place, "segmenter")
        self._processor = load_image_processor(options.model, "segmenter")

    def segment(self, images: Images, boxes: Sequence[Sequence[Corners]]) -> list[list[np.ndarray]]:
        return segment_in_batches(self._run, images, boxes, self.options.batch_size)

    @property
    def version(self) -> str:
        return f"sam {self.options.model}"

    @torch.inference_mode()
    def _run(self, images: list, boxes: list[Sequence[Corners]]) -> list[np.ndarray]:
        """Per image bool [boxes, H, W]."""
        inputs = self._processor(images=images, return_tensors="pt")
        pixels = self._place.move({"pixel_values": inputs["pixel_values"]})["pixel_values"]
        with self._place.autocast():  # boxes are decoded in float32
            embeddings = self._model.get_image_embeddings(pixels).float()
        sizes, inner = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        results = []
        for i, own in enumerate(boxes):
            scale = torch.tensor([inner[i][1] / sizes[i][1], inner[i][0] / sizes[i][0]] * 2)  # x, y, x, y

            def upsample(logits: Tensor, i: int = i) -> Tensor:
                return self._processor.post_process_masks(
                    [logits], [sizes[i]], [inner[i]], mask_threshold=self.options.mask_threshold
                )[0]

            results.append(
                decode_boxes(
                    self._model, embeddings[i : i + 1], torch.tensor(own) * scale, self._place, upsample,
                    self.options.multimask, self.options.boxes_at_once,
                )
            )  # fmt: skip
        return results
