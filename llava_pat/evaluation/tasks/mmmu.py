"""MMMU val: college-level questions of thirty subjects, multiple choice and open."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import OPTION_LETTER, SHORT_ANSWER
from llava_pat.evaluation.questions import Question
from llava_pat.evaluation.scorers.mmmu import SEED, mmmu_open_is_right, mmmu_option
from llava_pat.types import DataError

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
SUBJECTS = sorted(subject for subjects in DOMAINS.values() for subject in subjects)
HUB = "https://huggingface.co/datasets/MMMU/MMMU"
LABELS = "answer_dict_val.json"
GIT = f"https://github.com/MMMU-Benchmark/MMMU/blob/main/mmmu/{LABELS}"
PARQUET = "{}/validation-00000-of-00001.parquet"


class Mmmu(Benchmark):
    """MMMU val (900 questions), scored here by the official rules, random choices (seed 42) included.

    Prompts are the official ones for LLaVA-1.5, and so is the image: the first. A question with images among its
    options is guessed there; here it is asked like the others. Decoding there is a beam search (5) with sampling; here
    it is what the run says, greedy by default. Reading the parquet files takes pyarrow. Unanswered questions are left
    out, with a note, as there.
    """

    name = "mmmu"
    title = "MMMU val"
    folder = "mmmu"
    needs = (
        *(Needed(PARQUET.format(subject), f"questions and images, {subject}", HUB) for subject in SUBJECTS),
        Needed(LABELS, "answers", GIT),
    )

    def questions(self, root: Path) -> list[Question]:
        return [
            _question(row, f"{file}, row {number}")
            for subject in SUBJECTS
            for file in [self.path(root, PARQUET.format(subject))]
            for number, row in enumerate(_rows(file))
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        file = self.path(root, LABELS)
        labels, rng = read_json(file), random.Random(SEED)
        right: dict[str, list[bool]] = defaultdict(list)
        for question, text in zip(questions, texts, strict=True):
            if text is None:
                continue
            gold = field(labels, str(question.id), file, question.id)["ground_truth"]
            if question.extra["options"]:
                correct = mmmu_option(text, question.extra["options"], rng) in (
                    gold if isinstance(gold, list) else [gold]
                )
            else:
                correct = mmmu_open_is_right(text, gold)
            right[str(question.id).split("_", 1)[1].rsplit("_", 1)[0]].append(correct)
        every = [correct for subject in right.values() for correct in subject]
        metrics = {"accuracy": 100 * sum(every) / len(every)}
        for domain, subjects in DOMAINS.items():
            of_domain = [correct for subject in subjects for correct in right[subject]]
            metrics |= {domain: 100 * sum(of_domain) / len(of_domain)} if of_domain else {}
        by_subject = {name: 100 * sum(ok) / len(ok) for name, ok in sorted(right.items()) if ok}
        return Scores(metrics | by_subject, notes=notes)


def _question(row: dict[str, Any], where: str) -> Question:
    """The official prompt: options as "(A) text" lines and an empty line, or the question alone, then the suffix."""
    text: str = row["question"]
    options: dict[str, str] = {}
    if row["question_type"] == "multiple-choice":
        options = dict(zip("ABCDEFGHIJ", ast.literal_eval(row["options"]), strict=False))
        listed = "".join(f"({letter}) {option}\n" for letter, option in options.items())
        text = f"{text}\n{listed}{OPTION_LETTER}"
    else:
        text = f"{text}{SHORT_ANSWER}"
    image = row["image_1"]
    if image is None or not image["bytes"]:
        raise DataError(f"{where}: question {row['id']} has no first image; download the file again")
    return Question(row["id"], (image["bytes"],), text, extra={"options": options}, where=where)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{file} is read by pyarrow, which is not installed: pip install pyarrow") from error
    table = parquet.read_table(file, columns=["id", "question", "options", "question_type", "image_1"])
    yield from table.to_pylist()
