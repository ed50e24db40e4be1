"""SAM 3 (arXiv 2511.16719): a label in, all its instances out, boxes and masks: detector and segmenter in one.

transformers' Sam3Model needs torchvision. An image is encoded once and asked for its labels some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoProcessor, Sam3Model

from llava_pat.annotation.pretrained import Placement, load_model, load_part, require_package
from llava_pat.annotation.stages import Detection, Detections, Detector, Images
from llava_pat.types import DataError

_TYPES = ("sam3", "sam3_video")
"""facebook/sam3 is the whole: its detector is what is taken."""


@dataclass(frozen=True)
class Sam3Options:
    model: str = "facebook/sam3"
    threshold: float = 0.5
    """Of presence times score; as in the examples of transformers' SAM 3 page (its default is 0.3)."""
    mask_threshold: float = 0.5
    """Of the mask's probability."""
    labels_at_once: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise DataError(f"sam3: threshold is {self.threshold}, expected 0 to 1")


class Sam3(Detector):
    """Boxes and masks of an image's labels."""

    Options = Sam3Options

    def __init__(self, options: Sam3Options, place: Placement) -> None:
        require_package("torchvision", "sam3 (transformers' Sam3Model)", "bash scripts/setup.sh --with open-clip")
        self.options, self._place = options, place
        self._model = load_model(Sam3Model, options.model, _TYPES, place, "detector")
        self._processor = load_part(AutoProcessor, options.model, "detector")

    @torch.inference_mode()
    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        results = [Detections() for _ in images]
        for place, (image, wanted) in enumerate(zip(images, labels, strict=True)):
            if not wanted:
                continue
            pixels = self._place.move(self._processor(images=image, return_tensors="pt"))["pixel_values"]
            with self._place.autocast():
                encoded = self._model.get_vision_features(pixel_values=pixels)
            for start in range(0, len(wanted), self.options.labels_at_once):
                part = wanted[start : start + self.options.labels_at_once]
                results[place].found.extend(self._ask(image, encoded, part))
        return results

    @property
    def version(self) -> str:
        return f"sam3 {self.options.model}"

    def _ask(self, image, encoded: Any, labels: Sequence[str]) -> list[Detection]:
        texts = self._place.move(
            self._processor.tokenizer(
                list(labels), padding="max_length", truncation=True, max_length=32, return_tensors="pt"
            )
        )
        repeated = type(encoded)(
            last_hidden_state=None,
            fpn_hidden_states=tuple(level.expand(len(labels), -1, -1, -1) for level in encoded.fpn_hidden_states),
            fpn_position_encoding=tuple(
                level.expand(len(labels), -1, -1, -1) for level in encoded.fpn_position_encoding
            ),
        )
        with self._place.autocast():
            outputs = self._model(
                vision_embeds=repeated, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]
            )
        answers = self._processor.post_process_instance_segmentation(
            outputs, self.options.threshold, self.options.mask_threshold, [(image.height, image.width)] * len(labels)
        )
        return [
            Detection(label, tuple(box), score, mask)
            for label, answer in zip(labels, answers, strict=True)
            for box, score, mask in zip(
                answer["boxes"].float().tolist(),
                answer["scores"].float().tolist(),
                answer["masks"].bool().cpu().numpy(),
                strict=True,
            )
        ]
