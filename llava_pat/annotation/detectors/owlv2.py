"""OWLv2 (arXiv 2306.09683): every label is a query of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoTokenizer, Owlv2ForObjectDetection

from llava_pat.annotation.pretrained import (
    Placement,
    load_image_processor,
    load_model,
    load_part,
    require_package,
)
from llava_pat.annotation.stages import Detection, Detections, Detector, Images
from llava_pat.types import DataError


@dataclass(frozen=True)
class Owlv2Options:
    model: str = "google/owlv2-base-patch16-ensemble"
    threshold: float = 0.1
    """transformers' default; its examples find cats at 0.6."""
    template: str = "a photo of a {}"
    """The prompt of transformers' examples."""
    batch_size: int = 8

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise DataError(f"owlv2: the template {self.template!r} has no {{}} for the label")
        if not 0 <= self.threshold <= 1:
            raise DataError(f"owlv2: threshold is {self.threshold}, expected 0 to 1")


class Owlv2(Detector):
    """Boxes of an image's labels."""

    Options = Owlv2Options

    def __init__(self, options: Owlv2Options, place: Placement) -> None:
        require_package("scipy", "owlv2 (transformers resizes its images with it)", "pip install scipy")
        self.options, self._place = options, place
        self._model = load_model(Owlv2ForObjectDetection, options.model, ("owlv2",), place, "detector")
        self._processor = load_image_processor(options.model, "detector")
        self._tokenizer = load_part(AutoTokenizer, options.model, "detector")

    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        results = [Detections() for _ in images]
        asked = [place for place, wanted in enumerate(labels) if wanted]
        for start in range(0, len(asked), self.options.batch_size):
            part = asked[start : start + self.options.batch_size]
            logits, boxes = self._run([images[place] for place in part], [labels[place] for place in part])
            for row, place in enumerate(part):
                results[place].found = self._read(logits[row], boxes[row], labels[place], images[place])
        return results

    @property
    def version(self) -> str:
        return f"owlv2 {self.options.model}"

    @torch.inference_mode()
    def _run(self, images: list, labels: list[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """logits [I, queries, labels of the image that has most], boxes [I, queries, 4]: cx, cy, w, h."""
        inputs = self._place.move(self._processor(images=images, return_tensors="pt"))
        length, most = self._model.config.text_config.max_position_embeddings, max(map(len, labels))
        texts = self._tokenizer(
            [self.options.template.format(label) for wanted in labels for label in wanted],
            padding="max_length", truncation=True, max_length=length, return_tensors="pt",
        )  # fmt: skip
        ids, mask = (torch.zeros(len(labels) * most, length, dtype=torch.int64) for _ in range(2))
        rows = [row * most + column for row, wanted in enumerate(labels) for column in range(len(wanted))]
        # a query whose first id is 0 is no query to the model; transformers' processor pads with " ", which is one
        ids[rows], mask[rows] = texts["input_ids"], texts["attention_mask"]
        inputs |= self._place.move({"input_ids": ids, "attention_mask": mask})
        with self._place.autocast():
            outputs = self._model(**inputs)
        return outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()

    def _read(self, logits: Tensor, boxes: Tensor, labels: Sequence[str], image) -> list[Detection]:
        scores, best = logits[:, : len(labels)].sigmoid().max(-1)
        keep = scores > self.options.threshold
        centres, sides = boxes[keep, :2], boxes[keep, 2:]
        # its images are padded at the right and the bottom to a square: shares are of the longer side
        corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1) * max(image.height, image.width)
        return [
            Detection(labels[label], tuple(box), score)
            for label, box, score in zip(best[keep].tolist(), corners.tolist(), scores[keep].tolist(), strict=True)
        ]
