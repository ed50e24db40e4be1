"""VQAv2: test-dev for the server (what LLaVA-1.5's tables have), val scored here."""

from __future__ import annotations

from pathlib import Path

from llava_pat.data.json_files import read_jsonl
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, read_questions
from llava_pat.evaluation.scorers.m4c import m4c_answer
from llava_pat.evaluation.submissions import write_json
from llava_pat.evaluation.vqa_files import VqaAnnotated, listed, read_vqa_questions

EVAL_ZIP = "LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA)"
DOWNLOAD = "https://visualqa.org/download.html"
SERVER = "https://eval.ai/web/challenges/challenge-page/830/my-submission"


class VqaV2(Benchmark):
    """VQAv2 test-dev: a submission with an answer to every question of test, '' where it is not in test-dev."""

    name = "vqav2"
    title = "VQAv2 test-dev"
    folder = "vqav2"
    needs = (
        Needed(
            "llava_vqav2_mscoco_test-dev2015.jsonl",
            "questions of test-dev",
            f"{EVAL_ZIP}, or {DOWNLOAD}",
            instead=("v2_OpenEnded_mscoco_test-dev2015_questions.json",),
        ),
        Needed(
            "llava_vqav2_mscoco_test2015.jsonl",
            "questions of test (the server wants them all)",
            f"{EVAL_ZIP}, or {DOWNLOAD}",
            instead=("v2_OpenEnded_mscoco_test2015_questions.json",),
        ),
        Needed("test2015", "images", "http://images.cocodataset.org/zips/test2015.zip"),
    )

    def questions(self, root: Path) -> list[Question]:
        file, images = self.path(root, "llava_vqav2_mscoco_test-dev2015.jsonl"), self.path(root, "test2015")
        if file.suffix == ".jsonl":
            return read_questions(file, images, unique_ids=True)
        return read_vqa_questions(file, images, "COCO_test2015_{:012d}.jpg")

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        said = {q.id: m4c_answer(text) for q, text in zip(questions, texts, strict=True) if text is not None}
        file = self.path(root, "llava_vqav2_mscoco_test2015.jsonl")
        asked = read_jsonl(file) if file.suffix == ".jsonl" else listed(file, "questions")
        ids = [entry["question_id"] for entry in asked]
        lines = [{"question_id": key, "answer": said.get(key, "")} for key in ids]
        submission = write_json(self.upload_folder(root, out) / f"{self.name}.json", lines)
        return Scores({}, submission, [*notes, f"scored by the server only: {SERVER}"])


class VqaV2Val(VqaAnnotated):
    """VQAv2 val, scored here."""

    name = "vqav2_val"
    title = "VQAv2 val"
    folder = "vqav2"
    questions_file = "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations_file = "v2_mscoco_val2014_annotations.json"
    images = "val2014"
    image_name = "COCO_val2014_{:012d}.jpg"
    needs = (
        Needed(questions_file, "questions", DOWNLOAD),
        Needed(annotations_file, "answers", DOWNLOAD),
        Needed(images, "images", "http://images.cocodataset.org/zips/val2014.zip", instead=("../pope/val2014",)),
    )
