"""The playground's VQA: questions about its held-out scenes, in VQA's files."""

from __future__ import annotations

from llava_pat.evaluation.benchmark import Needed
from llava_pat.evaluation.vqa_files import VqaAnnotated

GENERATE = "python -m playground.generate --if_absent"


class PlaygroundVqa(VqaAnnotated):
    """Counting, colours, existence and relations; prompt and scorer are VQAv2's.

    Its labels are words like "eight", on which all ten people agree: the scorer then compares as it stands, and an
    answer that LLaVA's converter has made "8" would be wrong.
    """

    name = "playground_vqa"
    title = "Playground VQA"
    folder = ""
    questions_file = "vqa_questions.json"
    annotations_file = "vqa_annotations.json"
    images = "../images"
    image_name = "val/{:06d}.png"
    converted = False
    needs = (
        Needed(questions_file, "questions", GENERATE),
        Needed(annotations_file, "answers", GENERATE),
        Needed(images, "images", GENERATE),
    )
