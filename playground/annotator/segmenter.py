"""The playground's segmenter: the pixels in a box of whatever fills it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Corners, Images, Segmenter
from llava_pat.types import DataError
from playground.annotator.objects import pixels_in_box
from playground.annotator.pixels import PixelReader


@dataclass(frozen=True)
class SceneSegmenterOptions:
    model: str = "playground/data/annotator"
    """A folder of `python -m playground.annotator.train`."""
    threshold: float = 0.2
    """Of a pixel's probability, as the detector's."""
    batch_size: int = 32
    """Images at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.batch_size < 1:
            raise DataError(
                f"scene segmenter: threshold {self.threshold} (between 0 and 1), batch_size {self.batch_size} "
                "(at least 1)"
            )


class SceneSegmenter(Segmenter):
    """Masks of boxes. It reads the pixels again: what the detector found is not known here."""

    Options = SceneSegmenterOptions

    def __init__(self, options: SceneSegmenterOptions, place: Placement) -> None:
        self.options = options
        self._reader = PixelReader.load(options.model, place, "segmenter", options.batch_size)

    def segment(self, images: Images, boxes: Sequence[Sequence[Corners]]) -> list[list[np.ndarray]]:
        asked = [place for place, own in enumerate(boxes) if own]
        seen = dict(zip(asked, self._reader.read([images[place] for place in asked]), strict=True))
        return [
            [pixels_in_box(seen[place], box, self.options.threshold) for box in own] for place, own in enumerate(boxes)
        ]

    @property
    def version(self) -> str:
        return f"scene segmenter {self._reader.version}"
