"""The playground's POPE: `pope_{random,popular,adversarial}.jsonl` beside its images."""

from __future__ import annotations

from llava_pat.evaluation.benchmark import Needed
from llava_pat.evaluation.tasks.pope import CATEGORIES, Pope

GENERATE = "python -m playground.generate --if_absent"


class PlaygroundPope(Pope):
    """POPE about the playground's held-out scenes, through the same questions and scorer."""

    name = "playground_pope"
    title = "Playground POPE"
    folder = ""
    images = "../images"
    labels = "pope_{}.jsonl"
    needs = (
        *(Needed(f"pope_{kind}.jsonl", f"questions and labels, {kind}", GENERATE) for kind in CATEGORIES),
        Needed("../images", "images", GENERATE),
    )
