"""MM-Vet: free answers, graded by a judge against short gold answers."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.questions import Question, image_in, read_questions
from llava_pat.evaluation.scorers.mmvet import grade, mmvet_metrics
from llava_pat.evaluation.submissions import write_json
from llava_pat.types import DataError

RELEASE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
EVALUATOR = "mm-vet_evaluator.py"
LABELS = "mm-vet.json"
READY = "llava-mm-vet.jsonl"
ATTEMPTS = 5


class MmVet(Benchmark):
    """MM-Vet (218 questions). Writes the results file of the official evaluator (and of its online one).

    A score needs grades: with a `judge`, they are asked for with the prompt in the official mm-vet_evaluator.py, which
    the user puts beside the data; without, a grade file `mmvet_grades.json` in the evaluator's format is read from the
    folder of the submission, or else a note says what to do.
    """

    name = "mmvet"
    title = "MM-Vet"
    folder = "mm-vet"
    max_new_tokens = 1024
    script = "vqa"
    needs = (
        Needed(LABELS, "questions, gold answers and capabilities", RELEASE, instead=(f"../mmvet/{LABELS}",)),
        Needed("images", "images", RELEASE, instead=("../mmvet/images",)),
    )

    def questions(self, root: Path) -> list[Question]:
        images, ready = self.path(root, "images"), root / self.folder / READY
        if ready.is_file():
            return read_questions(ready, images, unique_ids=True)
        file = self.path(root, LABELS)
        return [
            Question(
                id=int(key.removeprefix("v1_")),
                images=(image_in(images, field(entry, "imagename", file, key), f"{file}, question {key}"),),
                text=field(entry, "question", file, key),
                where=f"{file}, question {key}",
            )
            for key, entry in read_json(file).items()
        ]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        said = {f"v1_{q.id}": text for q, text in zip(questions, texts, strict=True) if text is not None}
        folder = self.upload_folder(root, out)
        submission = write_json(folder / f"{self.name}.json", said, indent=2)
        grade_file = folder / f"{self.name}_grades.json"
        grades = read_json(grade_file) if grade_file.is_file() else {}
        if self.judge is not None:
            notes += self._ask(root, said, grades, grade_file)
        if not grades:
            how = f"name a judge, or put the official evaluator's grades there: {grade_file}"
            return Scores({}, submission, [*notes, f"not graded: {how}"])
        labels = read_json(self.path(root, LABELS))
        if any("answer_sha256" not in grades[key] for key in said if key in grades):
            notes.append(f"{grade_file} does not say which answers it grades: it is taken for these")
        stale = [key for key in said if key in grades and _stale(grades[key], said[key])]
        if stale:
            raise DataError(f"{grade_file} grades other answers (first: {stale[0]}); remove it to grade these")
        graded = {key: sum(grades[key]["score"]) / len(grades[key]["score"]) for key in said if key in grades}
        if len(graded) < len(labels):
            notes.append(f"{len(graded)} of {len(labels)} questions are graded: the figures are over those")
        judges = sorted({model for key in graded for model in grades[key]["model"]})
        capabilities = {key: entry["capability"] for key, entry in labels.items()}
        return Scores(mmvet_metrics(graded, capabilities), submission, [*notes, f"graded by {', '.join(judges)}"])

    def _ask(self, root: Path, said: dict[str, str], grades: dict[str, Any], grade_file: Path) -> list[str]:
        """Grade what is not graded yet, saving after each; a grade that cannot be read in five tries is 0, as there."""
        assert self.judge is not None
        file, prompt, unread = self.path(root, LABELS), _prompt(root / self.folder / EVALUATOR), 0
        labels = read_json(file)
        for key, text in said.items():
            if key in grades:
                continue
            gold = labels[key]["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
            asked = prompt + "\n" + " | ".join([labels[key]["question"], gold, text, ""])
            value, reply = None, ""
            for attempt in range(ATTEMPTS):
                content = asked if not attempt else f"{asked}\nPredict the correctness of the answer (digit): "
                message = [{"role": "user", "content": content}]
                reply = self.judge.ask(message, temperature=0.5 * max(0, attempt - 1), max_tokens=3)
                value = grade(reply)
                if value is not None:
                    break
            unread += value is None
            grades[key] = {
                "model": [self.judge.model],
                "content": [reply],
                "score": [value or 0.0],
                "answer_sha256": _sha256(text),
            }
            write_json(grade_file, grades, indent=2)
        return [f"{unread} grades could not be read and count as 0, as in the official evaluator"] if unread else []


def _prompt(file: Path) -> str:
    """The string `prompt` of the official evaluator, read without running it."""
    if not file.is_file():
        where = f"https://github.com/yuweihao/MM-Vet/blob/main/{EVALUATOR}"
        raise DataError(f"{file} is missing: the judge's prompt is in it; from {where}")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["prompt"]:
            return ast.literal_eval(node.value)
    raise DataError(f"{file}: no `prompt = ...` at its top level; is this MM-Vet's evaluator?")


def _stale(graded: dict[str, Any], text: str) -> bool:
    return "answer_sha256" in graded and graded["answer_sha256"] != _sha256(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
