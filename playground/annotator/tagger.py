"""Asks the detector for everything there is, whatever the caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Images, Tagger
from playground.annotator.scheme import LABELS


@dataclass(frozen=True)
class AllLabelsOptions:
    pass


class AllLabels(Tagger):
    """The playground's 128 labels, for every image; settings need `labels: {max_labels: 128}`."""

    Options = AllLabelsOptions
    version = "all labels of the playground"

    def __init__(self, options: AllLabelsOptions, place: Placement) -> None:
        pass

    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        return [list(LABELS) for _ in images]
