"""Florence-2 as a detector: one question a label. It answers with boxes and no scores.

<OPEN_VOCABULARY_DETECTION> takes one label. With several labels as one caption, the phrases of the answer would have to
be matched to labels, and transformers' parser drops their non-ASCII letters; so a question has one label, and every
box of the answer is that label's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.annotation.florence2 import MODEL, Florence2
from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Detection, Detections, Detector, Images
from llava_pat.types import DataError

_BOXES = {"<OPEN_VOCABULARY_DETECTION>": "bboxes", "<CAPTION_TO_PHRASE_GROUNDING>": "bboxes"}
NO_BOX = "boxes of Florence-2 without extent"


@dataclass(frozen=True)
class Florence2DetectorOptions:
    model: str = MODEL
    task: str = "<OPEN_VOCABULARY_DETECTION>"
    """Or <CAPTION_TO_PHRASE_GROUNDING>, with the label as the caption."""
    max_new_tokens: int = 256
    num_beams: int = 3
    """As in the models' generation_config.json."""
    batch_size: int = 16
    """Questions at a time."""

    def __post_init__(self) -> None:
        if self.task not in _BOXES:
            raise DataError(f"florence2 detector: task is {self.task!r}, expected one of {sorted(_BOXES)}")


class Florence2Detector(Detector):
    """Boxes of an image's labels."""

    Options = Florence2DetectorOptions

    def __init__(self, options: Florence2DetectorOptions, place: Placement) -> None:
        self.options = options
        self._florence = Florence2(options.model, place, options.max_new_tokens, options.num_beams, options.batch_size)

    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        results = [Detections() for _ in images]
        asked = [(place, label) for place, wanted in enumerate(labels) for label in wanted]
        if not asked:
            return results
        answers = self._florence.ask(
            [images[place] for place, _ in asked], self.options.task, [label for _, label in asked]
        )
        for (place, label), answer in zip(asked, answers, strict=True):
            for x0, y0, x1, y1 in answer[_BOXES[self.options.task]]:
                if x1 > x0 and y1 > y0:
                    results[place].found.append(Detection(label, (x0, y0, x1, y1), None))
                else:
                    results[place].left_out[NO_BOX] += 1
        return results

    @property
    def version(self) -> str:
        return f"florence2 {self.options.model} {self.options.task}"
