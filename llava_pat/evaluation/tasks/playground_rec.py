"""The playground's comprehension: `refs.json` and `instances.json`, RefCOCO's files about its held-out scenes."""

from __future__ import annotations

from llava_pat.evaluation.benchmark import Needed
from llava_pat.evaluation.tasks.playground_pope import GENERATE
from llava_pat.evaluation.tasks.refcoco import Comprehension


class PlaygroundRec(Comprehension):
    """Through the same questions and scorer as RefCOCO."""

    name = "playground_rec"
    title = "Playground REC"
    folder = ""
    split = "val"
    needs = (
        Needed("refs.json", "expressions", GENERATE),
        Needed("instances.json", "boxes", GENERATE),
        Needed("../images", "images", GENERATE),
    )
