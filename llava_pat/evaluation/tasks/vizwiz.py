"""VizWiz: photos by blind people; test for the server (what LLaVA-1.5's tables have), val scored here."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import VIZWIZ
from llava_pat.evaluation.questions import Question, image_in, read_questions
from llava_pat.evaluation.scorers.m4c import m4c_answer
from llava_pat.evaluation.scorers.vqa_accuracy import vqa_accuracy
from llava_pat.evaluation.submissions import write_json
from llava_pat.types import DataError

ANNOTATIONS = "https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip"
SERVER = "https://eval.ai/web/challenges/challenge-page/2185/my-submission"


def read_vizwiz(file: Path, images: Path) -> list[Question]:
    """Questions of VizWiz's own JSON list `{"image", "question"[, "answers", "answer_type"]}`; ids count from 0."""
    entries = read_json(file)
    if not isinstance(entries, list):
        raise DataError(f"{file}: a JSON list of questions is expected, this is a {type(entries).__name__}")
    return [
        Question(
            id=number,
            images=(image_in(images, field(entry, "image", file, number), f"{file}, entry {number}"),),
            text=field(entry, "question", file, number) + VIZWIZ,
            extra={key: entry[key] for key in ("answers", "answer_type") if key in entry},
            where=f"{file}, entry {number}",
        )
        for number, entry in enumerate(entries)
    ]


class VizWiz(Benchmark):
    """VizWiz test: a submission with LLaVA's normalisation."""

    name = "vizwiz"
    title = "VizWiz test"
    folder = "vizwiz"
    needs = (
        Needed("llava_test.jsonl", "questions", f"LLaVA's eval.zip, or {ANNOTATIONS}", instead=("test.json",)),
        Needed("test", "images", "https://vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip"),
    )

    def questions(self, root: Path) -> list[Question]:
        file, images = self.path(root, "llava_test.jsonl"), self.path(root, "test")
        return read_questions(file, images, unique_ids=True) if file.suffix == ".jsonl" else read_vizwiz(file, images)

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        if notes:
            raise DataError(f"{self.name}: {notes[0]}, and the server takes whole submissions only; answer them all")
        lines = [
            {"image": Path(question.images[0]).name, "answer": m4c_answer(text)}
            for question, text in zip(questions, texts, strict=True)
        ]
        submission = write_json(self.upload_folder(root, out) / f"{self.name}.json", lines)
        return Scores({}, submission, [f"scored by the server only: {SERVER}"])


class VizWizVal(Benchmark):
    """VizWiz val (4,319 questions), scored here: LLaVA's normalisation, then VQA's accuracy."""

    name = "vizwiz_val"
    title = "VizWiz val"
    folder = "vizwiz"
    needs = (
        Needed("val.json", "questions and answers", ANNOTATIONS),
        Needed("val", "images", "https://vizwiz.cs.colorado.edu/VizWiz_final/images/val.zip"),
    )

    def questions(self, root: Path) -> list[Question]:
        return read_vizwiz(self.path(root, "val.json"), self.path(root, "val"))

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        scores: dict[str, list[float]] = defaultdict(list)
        for question, text in zip(questions, texts, strict=True):
            if "answers" not in question.extra:
                raise DataError(f"{question.where}: no answers; VizWiz's val.json has ten for each question")
            score = vqa_accuracy(m4c_answer(text or ""), [given["answer"] for given in question.extra["answers"]])
            scores["accuracy"].append(score)
            scores[f"{question.extra.get('answer_type', 'untyped')}_accuracy"].append(score)
        names = ["accuracy", *sorted(set(scores) - {"accuracy"})]
        return Scores({name: 100 * sum(scores[name]) / len(scores[name]) for name in names}, notes=notes)
