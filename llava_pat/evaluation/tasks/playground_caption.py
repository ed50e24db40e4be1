"""The playground's captions: five references for each of its held-out scenes, in COCO's format."""

from __future__ import annotations

from pathlib import Path

from llava_pat.evaluation.benchmark import Needed
from llava_pat.evaluation.tasks.coco_caption import CaptionBenchmark, Captioned, read_coco
from llava_pat.evaluation.tasks.playground_pope import GENERATE


class PlaygroundCaption(CaptionBenchmark):
    """Asked as its training data asks."""

    name = "playground_caption"
    title = "Playground captions"
    folder = ""
    prompt = "Describe the image."
    max_new_tokens = 64
    needs = (Needed("captions.json", "captions", GENERATE), Needed("../images", "images", GENERATE))

    def images(self, root: Path) -> list[Captioned]:
        return read_coco(*(self.path(root, needed.path) for needed in self.needs))
