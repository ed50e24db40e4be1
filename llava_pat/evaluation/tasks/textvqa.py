"""TextVQA val: reading text in images, with LLaVA's OCR hint in the prompt (its tables' figure) and without."""

from __future__ import annotations

from pathlib import Path

from llava_pat.data.json_files import field
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import SHORT_ANSWER
from llava_pat.evaluation.questions import Question, image_in, read_questions
from llava_pat.evaluation.scorers.m4c import question_of_prompt, textvqa_accuracy
from llava_pat.evaluation.vqa_files import listed
from llava_pat.types import DataError

DATA = "https://dl.fbaipublicfiles.com/textvqa"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
IMAGES = "train_images"
_ANNOTATIONS = Needed(ANNOTATIONS, "questions and answers", f"{DATA}/data/{ANNOTATIONS}")
_IMAGES = Needed(IMAGES, "images", f"{DATA}/images/train_val_images.zip")


class TextVqaNoOcr(Benchmark):
    """TextVQA val, question only. Scored by M4C's evaluator; an answer's annotation is found as LLaVA finds it."""

    name = "textvqa_no_ocr"
    title = "TextVQA val, no OCR hint"
    folder = "textvqa"
    needs = (_ANNOTATIONS, _IMAGES)

    def questions(self, root: Path) -> list[Question]:
        return self._built(root, None)

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        file = self.path(root, ANNOTATIONS)
        people = {(entry["image_id"], entry["question"].lower()): entry["answers"] for entry in listed(file, "data")}
        scores = []
        for question, text in zip(questions, texts, strict=True):
            if text is None:
                continue
            key = (question.id, question_of_prompt(question.text))
            if key not in people:
                raise DataError(f"{file}: no question {key[1]!r} about image {key[0]!r}, which {question.where} asks")
            scores.append(textvqa_accuracy(text, people[key]))
        return Scores({"accuracy": 100 * sum(scores) / len(scores)}, notes=notes)

    def _built(self, root: Path, hints: dict[str, list[str]] | None) -> list[Question]:
        """LLaVA's prompts from the official files; hints: image -> OCR tokens, an empty hint without."""
        file, images = self.path(root, ANNOTATIONS), self.path(root, IMAGES)
        built = []
        for number, entry in enumerate(listed(file, "data")):
            image = field(entry, "image_id", file, number)
            hint = "" if hints is None else f"\nReference OCR token: {', '.join(hints.get(image, []))}"
            text = field(entry, "question", file, number) + hint + SHORT_ANSWER
            where = f"{file}, entry {number}"
            built.append(Question(image, (image_in(images, f"{image}.jpg", where),), text, where=where))
        return built


class TextVqa(TextVqaNoOcr):
    """TextVQA val with the OCR tokens in the prompt, as in LLaVA-1.5's tables (58.2 for 7B)."""

    name = "textvqa"
    title = "TextVQA val"
    ocr = "llava_textvqa_val_v051_ocr.jsonl"
    needs = (
        Needed(
            ocr,
            "questions with OCR tokens",
            f"LLaVA's eval.zip, or {DATA}/data/TextVQA_Rosetta_OCR_v0.2_val.json",
            instead=("TextVQA_Rosetta_OCR_v0.2_val.json",),
        ),
        _ANNOTATIONS,
        _IMAGES,
    )

    def questions(self, root: Path) -> list[Question]:
        file = self.path(root, self.ocr)
        if file.suffix == ".jsonl":
            return read_questions(file, self.path(root, IMAGES))
        tokens = {entry["image_id"]: entry["ocr_tokens"] for entry in listed(file, "data")}
        return self._built(root, tokens)
