"""No segmenter: the box is the region. Also what goes with a detector that gives masks itself (sam3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Corners, Images, Segmenter


@dataclass(frozen=True)
class BoxesOptions:
    pass


class Boxes(Segmenter):
    """None for every box."""

    Options = BoxesOptions

    def __init__(self, options: BoxesOptions, place: Placement) -> None:
        pass

    def segment(self, images: Images, boxes: Sequence[Sequence[Corners]]) -> list[list[None]]:
        return [[None] * len(own) for own in boxes]

    @property
    def version(self) -> str:
        return "boxes"
