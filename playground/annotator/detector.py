"""The playground's detector: boxes around the pixels that are of a label's kind and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Detection, Detections, Detector, Images
from llava_pat.types import DataError
from playground.annotator.objects import box_around, find_pieces
from playground.annotator.pixels import PixelProbabilities, PixelReader
from playground.annotator.scheme import read_label

UNKNOWN = "labels that the playground's detector does not know"


@dataclass(frozen=True)
class SceneDetectorOptions:
    model: str = "playground/data/annotator"
    """A folder of `python -m playground.annotator.train`."""
    threshold: float = 0.2
    """Of a pixel's probability; chosen on `val`. What a caption names is there, so a low one costs little; where all
    labels are asked for, selection's min_score is the one to set."""
    min_pixels: int = 20
    """Smaller pieces are no objects; the smallest objects of the playground have five times as many."""
    reach: int = 2
    """Pieces of a label at most twice as many pixels apart are one object, behind another's stroke."""
    batch_size: int = 32
    """Images at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.min_pixels < 1 or self.reach < 0 or self.batch_size < 1:
            raise DataError(
                f"scene detector: threshold {self.threshold} (between 0 and 1), min_pixels {self.min_pixels} and "
                f"batch_size {self.batch_size} (at least 1), reach {self.reach} (at least 0)"
            )


class SceneDetector(Detector):
    """Boxes of `colour kind`; the score is the pixels' mean probability."""

    Options = SceneDetectorOptions

    def __init__(self, options: SceneDetectorOptions, place: Placement) -> None:
        self.options = options
        self._reader = PixelReader.load(options.model, place, "detector", options.batch_size)

    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        asked = [place for place, wanted in enumerate(labels) if wanted]
        seen = dict(zip(asked, self._reader.read([images[place] for place in asked]), strict=True))
        return [
            find_labels(seen[i], labels[i], self.options) if i in seen else Detections() for i in range(len(images))
        ]

    @property
    def version(self) -> str:
        return f"scene detector {self._reader.version}"


def find_labels(seen: PixelProbabilities, labels: Sequence[str], options: SceneDetectorOptions) -> Detections:
    """Everything of these labels in one image."""
    result = Detections()
    for label in labels:
        known = read_label(label)
        if known is None:
            result.left_out[UNKNOWN] += 1
            continue
        probability = seen.of(*known)
        for piece in find_pieces(probability >= options.threshold, options.reach):
            if piece.sum() >= options.min_pixels:
                result.found.append(Detection(label, box_around(piece), float(probability[piece].mean())))
    return result
