"""POPE: is an object in the image? Three ways of choosing the objects that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from llava_pat.data.json_files import field, read_jsonl
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import SHORT_ANSWER
from llava_pat.evaluation.questions import Question, image_in
from llava_pat.evaluation.scorers.pope import pope_counts

CATEGORIES = ("adversarial", "random", "popular")
ID_STEP = 10_000_000
"""Ids start anew in each label file. LLaVA's llava_pope_test.jsonl, whose order and ids are ours, adds this much."""
COMMIT = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"


class Pope(Benchmark):
    """POPE on COCO val2014, scored here.

    The label files are JSONL in spite of their name: `{"question_id", "image", "text", "label"}`. LLaVA's figures are
    of the older files (2,910 questions in the random one; 3,000 since October 2023), see LLaVA#626. The headline is the
    mean of the three F1, what LLaVA-1.5's tables call POPE. Questions without an answer are left out, with a note.
    """

    name = "pope"
    title = "POPE"
    folder = "pope"
    images = "val2014"
    labels: ClassVar[str] = "coco/coco_pope_{}.json"
    needs = (
        *(Needed(f"coco/coco_pope_{kind}.json", f"questions and labels, {kind}", COMMIT) for kind in CATEGORIES),
        Needed("val2014", "images", "http://images.cocodataset.org/zips/val2014.zip"),
    )

    def questions(self, root: Path) -> list[Question]:
        images = self.path(root, self.images)
        return [
            Question(
                id=field(line, "question_id", file, number) + place * ID_STEP,
                images=(image_in(images, field(line, "image", file, number), f"{file}:{number}"),),
                text=field(line, "text", file, number) + SHORT_ANSWER,
                extra={"category": category, "label": field(line, "label", file, number)},
                where=f"{file}, line {number}",
            )
            for place, category in enumerate(CATEGORIES)
            for file in [self.path(root, self.labels.format(category))]
            for number, line in enumerate(read_jsonl(file), start=1)
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        metrics: dict[str, float] = {}
        for category in CATEGORIES:
            pairs = [
                (text, question.extra["label"])
                for question, text in zip(questions, texts, strict=True)
                if question.extra["category"] == category and text is not None
            ]
            if not pairs:
                notes.append(f"no answer in the category {category}: the mean is of the others")
                continue
            counts = pope_counts(*zip(*pairs, strict=True))
            metrics[f"{category}_f1"] = 100 * counts.f1
            metrics[f"{category}_accuracy"] = 100 * counts.accuracy
            metrics[f"{category}_precision"] = 100 * counts.precision
            metrics[f"{category}_recall"] = 100 * counts.recall
            metrics[f"{category}_yes_ratio"] = 100 * counts.yes_ratio
        f1 = [value for key, value in metrics.items() if key.endswith("_f1")]
        return Scores({"f1": sum(f1) / len(f1), **metrics}, notes=notes)
