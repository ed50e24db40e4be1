"""OK-VQA val: questions that need outside knowledge."""

from __future__ import annotations

from llava_pat.evaluation.benchmark import Needed
from llava_pat.evaluation.vqa_files import VqaAnnotated

DOWNLOAD = "https://okvqa.allenai.org/download.html"


class OkVqa(VqaAnnotated):
    """OK-VQA val (5,046 questions), scored here by VQA's accuracy on the `answer` fields; nothing is stemmed."""

    name = "okvqa"
    title = "OK-VQA val"
    folder = "okvqa"
    questions_file = "OpenEnded_mscoco_val2014_questions.json"
    annotations_file = "mscoco_val2014_annotations.json"
    images = "val2014"
    image_name = "COCO_val2014_{:012d}.jpg"
    needs = (
        Needed(questions_file, "questions", DOWNLOAD),
        Needed(annotations_file, "answers, version 1.1", DOWNLOAD),
        Needed(
            images,
            "images",
            "http://images.cocodataset.org/zips/val2014.zip",
            instead=("../pope/val2014", "../vqav2/val2014"),
        ),
    )
