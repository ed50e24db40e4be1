"""GQA testdev-balanced: compositional questions about real scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import SHORT_ANSWER
from llava_pat.evaluation.questions import Question, image_in, read_questions
from llava_pat.evaluation.scorers.gqa import gqa_answer, gqa_metrics
from llava_pat.evaluation.submissions import write_json
from llava_pat.types import DataError

DOWNLOAD = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
LABELS = "data/testdev_balanced_questions.json"
IMAGES = "data/images"
LLAVA = "llava_gqa_testdev_balanced.jsonl"


class Gqa(Benchmark):
    """GQA testdev-balanced (12,578 questions), scored here; the predictions file for GQA's eval.py is written as well.

    LLaVA's question file is used where it is there; its prompts and order are the official file's with the suffix.
    """

    name = "gqa"
    title = "GQA"
    folder = "gqa"
    needs = (
        Needed(
            LABELS,
            "questions and answers (questions1.2.zip)",
            DOWNLOAD,
            instead=("data/questions1.2/testdev_balanced_questions.json",),
        ),
        Needed(IMAGES, "images (images.zip)", DOWNLOAD),
    )

    def questions(self, root: Path) -> list[Question]:
        images = self.path(root, IMAGES)
        ready = root / self.folder / LLAVA
        if ready.is_file():
            return read_questions(ready, images, unique_ids=True)
        file, entries = self._labels(root)
        return [
            Question(
                id=key,
                images=(image_in(images, f"{field(entry, 'imageId', file, key)}.jpg", f"{file}, question {key}"),),
                text=field(entry, "question", file, key) + SHORT_ANSWER,
                where=f"{file}, question {key}",
            )
            for key, entry in entries.items()
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        file, labels = self._labels(root)
        unknown = [question.id for question in questions if question.id not in labels]
        if unknown:
            raise DataError(f"{file}: {len(unknown)} questions of {LLAVA} are not in it (first: {unknown[0]!r})")
        predictions = [gqa_answer(text or "") for text in texts]
        lines = [
            {"questionId": question.id, "prediction": prediction}
            for question, prediction in zip(questions, predictions, strict=True)
        ]
        submission = write_json(self.upload_folder(root, out) / "testdev_balanced_predictions.json", lines)
        return Scores(gqa_metrics([labels[question.id] for question in questions], predictions), submission, notes)

    def _labels(self, root: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
        file = self.path(root, LABELS)
        labels = read_json(file)
        if not isinstance(labels, dict):
            raise DataError(f"{file}: a JSON object of questions is expected, this is a {type(labels).__name__}")
        for key, entry in labels.items():
            for name in ("answer", "isBalanced", "types", "groups"):
                field(entry, name, file, key)
        return file, labels
