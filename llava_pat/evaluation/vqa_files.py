"""Benchmarks in VQA's files: `{"questions": [...]}` and `{"annotations": [...]}`, ten answers a question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from llava_pat.data.json_files import field, read_json
from llava_pat.data.json_text import quoted
from llava_pat.evaluation.benchmark import Answers, Benchmark, Scores, texts_of
from llava_pat.evaluation.prompts import SHORT_ANSWER
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.scorers.m4c import m4c_answer
from llava_pat.evaluation.scorers.vqa_accuracy import vqa_accuracy
from llava_pat.types import DataError


def read_vqa_questions(file: Path, images: Path, image_name: str) -> list[Question]:
    """Questions of a VQA file with LLaVA's prompt for short answers.

    Args:
        file: `{"questions": [{"question_id", "image_id", "question"}]}`.
        images: the folder of images.
        image_name: an image's name from its id, such as "COCO_val2014_{:012d}.jpg".
    """
    return [
        Question(
            id=field(entry, "question_id", file, number),
            images=(image_in(images, _image_name(image_name, entry, file, number), f"{file}, question {number}"),),
            text=field(entry, "question", file, number) + SHORT_ANSWER,
            where=f"{file}, question {number}",
        )
        for number, entry in enumerate(listed(file, "questions"))
    ]


def _image_name(template: str, entry: dict[str, Any], file: Path, number: int) -> str:
    image = field(entry, "image_id", file, number)
    try:
        return template.format(image)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}, question {number}: 'image_id' is {quoted(image)}, no number of an image") from error


def listed(file: Path, key: str) -> list[dict[str, Any]]:
    """The list under a key of a JSON file.

    Raises:
        DataError: the file has no such list.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{file}: a JSON object with a list {key!r} is expected; download it again")
    return content[key]


class VqaAnnotated(Benchmark):
    """VQA with public answers. Answers are normalised as LLaVA does for the server, then scored as the server does."""

    questions_file: ClassVar[str]
    annotations_file: ClassVar[str]
    images: ClassVar[str]
    image_name: ClassVar[str]
    converted: ClassVar[bool] = True
    """Whether LLaVA's converter for the server (digits for number words, no articles) comes before the score."""

    def questions(self, root: Path) -> list[Question]:
        file = self.path(root, self.questions_file)
        return read_vqa_questions(file, self.path(root, self.images), self.image_name)

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        file = self.path(root, self.annotations_file)
        annotations = {entry["question_id"]: entry for entry in listed(file, "annotations")}
        scores: dict[str, list[float]] = defaultdict(list)
        for question, text in zip(questions, texts, strict=True):
            if question.id not in annotations:
                raise DataError(f"{file}: no annotation of question {question.id!r}; are both files of one release?")
            annotation = annotations[question.id]
            people = [given["answer"] for given in field(annotation, "answers", file, question.id)]
            score = vqa_accuracy(m4c_answer(text or "") if self.converted else text or "", people)
            scores["accuracy"].append(score)
            scores[f"{field(annotation, 'answer_type', file, question.id)}_accuracy"].append(score)
        names = ["accuracy", *sorted(set(scores) - {"accuracy"})]
        return Scores({name: 100 * sum(scores[name]) / len(scores[name]) for name in names}, notes=notes)
