"""Grounding DINO (arXiv 2303.05499) and MM Grounding DINO (arXiv 2401.02361): all labels of an image in one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

from llava_pat.annotation.detectors.grounding_prompt import Prompt, build_prompts, score_labels
from llava_pat.annotation.pretrained import Placement, load_image_processor, load_model, load_part
from llava_pat.annotation.stages import Detection, Detections, Detector, Images
from llava_pat.types import DataError

_TYPES = ("grounding-dino", "mm-grounding-dino")
UNKNOWN = "labels that Grounding DINO's tokenizer does not know"


@dataclass(frozen=True)
class GroundingDinoOptions:
    model: str = "IDEA-Research/grounding-dino-base"
    box_threshold: float = 0.35
    """The README of IDEA-Research/GroundingDINO. Its text threshold has no part here: see grounding_prompt.py."""
    batch_size: int = 8
    """Prompts at a time. Images of one batch are padded to one size."""

    def __post_init__(self) -> None:
        if not 0 <= self.box_threshold <= 1:
            raise DataError(f"grounding_dino: box_threshold is {self.box_threshold}, expected 0 to 1")


class GroundingDino(Detector):
    """Boxes of an image's labels."""

    Options = GroundingDinoOptions

    def __init__(self, options: GroundingDinoOptions, place: Placement) -> None:
        self.options, self._place = options, place
        self._model = load_model(AutoModelForZeroShotObjectDetection, options.model, _TYPES, place, "detector")
        self._processor = load_image_processor(options.model, "detector")
        self._tokenizer = load_part(AutoTokenizer, options.model, "detector")

    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        results = [Detections() for _ in images]
        asked: list[tuple[int, Prompt]] = []
        for place, wanted in enumerate(labels):
            prompts, unknown = build_prompts(wanted, self._tokenizer, self._model.config.max_text_len)
            results[place].left_out.update({UNKNOWN: len(unknown)} if unknown else {})
            asked.extend((place, prompt) for prompt in prompts)
        for start in range(0, len(asked), self.options.batch_size):
            part = asked[start : start + self.options.batch_size]
            logits, boxes = self._run([images[place] for place, _ in part], [prompt.text for _, prompt in part])
            for row, (place, prompt) in enumerate(part):
                results[place].found.extend(self._read(logits[row], boxes[row], prompt, images[place]))
        return results

    @property
    def version(self) -> str:
        return f"grounding_dino {self.options.model}"

    @torch.inference_mode()
    def _run(self, images: list, texts: list[str]) -> tuple[Tensor, Tensor]:
        """logits [prompts, queries, tokens], boxes [prompts, queries, 4] as shares of the image: cx, cy, w, h."""
        inputs = self._place.move(self._processor(images=images, return_tensors="pt"))
        inputs |= self._place.move(
            self._tokenizer(texts, padding=True, return_token_type_ids=True, return_tensors="pt")
        )
        with self._place.autocast():
            outputs = self._model(**inputs)
        return outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()

    def _read(self, logits: Tensor, boxes: Tensor, prompt: Prompt, image) -> list[Detection]:
        scores, best = score_labels(logits, prompt).max(-1)
        keep = scores > self.options.box_threshold
        centres, sides = boxes[keep, :2], boxes[keep, 2:]
        size = torch.tensor([image.width, image.height], dtype=torch.float32)
        corners = torch.cat([(centres - sides / 2) * size, (centres + sides / 2) * size], dim=-1)
        return [
            Detection(prompt.labels[label], tuple(box), score)
            for label, box, score in zip(best[keep].tolist(), corners.tolist(), scores[keep].tolist(), strict=True)
        ]
