"""What the stages of annotation are: tagger -> detector -> segmenter. Each is an interface that anybody may fill.

    Tagger      images, captions -> labels          what may be in the image
    Detector    images, labels   -> detections      where it is: boxes, or masks at once (SAM 3)
    Segmenter   images, boxes    -> masks           which pixels of the box it is

Images are PIL's, RGB, decoded once (decoding.py). Boxes are x0, y0, x1, y1 in pixels of the decoded image, edges not
centres. A batch of images may be of different sizes; everything is a list with an entry per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the decoded image."""
Images = Sequence[Image.Image]


@dataclass(frozen=True, eq=False)
class Detection:
    """One thing that was found."""

    label: str
    box: Corners
    score: float | None
    """In [0, 1]; None where the model gives none (Florence-2)."""
    mask: np.ndarray | None = None
    """bool [H, W] of the image, from a detector that gives masks: no segmenter is asked then."""


@dataclass
class Detections:
    """Everything that was found in one image."""

    found: list[Detection] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> how many labels or boxes."""


class Tagger(ABC):
    """Which labels an image may have."""

    @abstractmethod
    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        """Per image its labels, most likely first, as the model gives them: the pipeline cleans and merges them."""

    @property
    @abstractmethod
    def version(self) -> str:
        """What the regions file says about it: kind, model."""


class Detector(ABC):
    """Where an image's labels are."""

    @abstractmethod
    def detect(self, images: Images, labels: Sequence[Sequence[str]]) -> list[Detections]:
        """labels: per image, distinct; may be empty. Every detection's label is one of its image's labels."""

    @property
    @abstractmethod
    def version(self) -> str:
        """What the regions file says about it: kind, model."""


class Segmenter(ABC):
    """Which pixels of a box the thing is."""

    @abstractmethod
    def segment(self, images: Images, boxes: Sequence[Sequence[Corners]]) -> list[list[np.ndarray | None]]:
        """Per image and box a mask, bool [H, W] of the image; None: the box itself is the region."""

    @property
    @abstractmethod
    def version(self) -> str:
        """What the regions file says about it: kind, model."""
