"""ScienceQA test: school science with multiple choice; half of the questions have an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import OPTION_LETTER
from llava_pat.evaluation.questions import Question, image_in, read_science
from llava_pat.evaluation.scorers.scienceqa import OPTIONS, scienceqa_index
from llava_pat.types import IMAGE_TOKEN, DataError

REPOSITORY = "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa"
READY = "llava_test_CQM-A.json"


class ScienceQa(Benchmark):
    """ScienceQA test (4,241 questions), scored here. The headline is the image subset, SQA-I of LLaVA-1.5's tables.

    The subset is what was asked with an image and answered: an unanswered question counts as wrong in `accuracy` only,
    as in LLaVA's eval_science_qa.py.
    """

    name = "scienceqa"
    title = "ScienceQA (image)"
    folder = "scienceqa"
    max_new_tokens = 1024
    script = "science"
    needs = (
        Needed("pid_splits.json", "the split", REPOSITORY),
        Needed("problems.json", "questions and answers", REPOSITORY),
        Needed("images/test", "images", f"{REPOSITORY} (tools/download.sh)"),
    )

    def questions(self, root: Path) -> list[Question]:
        images, ready = self.path(root, "images/test"), root / self.folder / READY
        if ready.is_file():
            return read_science(ready, images, single_pred_prompt=True)
        file = self.path(root, "problems.json")
        return [_built(key, problem, file, images) for key, problem in self._problems(root).items()]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        problems = self._problems(root)
        right, right_with_image = [], []
        for question, text in zip(questions, texts, strict=True):
            if question.id not in problems:
                raise DataError(f"{question.where}: question {question.id!r} is not in problems.json's test split")
            problem = problems[question.id]
            index = None if text is None else scienceqa_index(text, len(problem["choices"]))
            right.append(index == problem["answer"])
            if text is not None and question.images:
                right_with_image.append(index == problem["answer"])
        metrics = {"accuracy": 100 * sum(right) / len(right)}
        if right_with_image:
            metrics = {"image_accuracy": 100 * sum(right_with_image) / len(right_with_image)} | metrics
        else:
            notes.append("no question with an image is answered: the headline is the accuracy over all questions")
        return Scores(metrics, notes=notes)

    def _problems(self, root: Path) -> dict[str, dict[str, Any]]:
        file = self.path(root, "problems.json")
        splits = self.path(root, "pid_splits.json")
        problems, split = read_json(file), field(read_json(splits), "test", splits, "top level")
        lacking = [key for key in split if key not in problems]
        if lacking:
            raise DataError(f"{splits}: {len(lacking)} problems of test are not in {file.name} (first: {lacking[0]!r})")
        return {key: problems[key] for key in split}


def _built(key: str, problem: dict[str, Any], file: Path, images: Path) -> Question:
    """LLaVA's prompt (its llava_test_CQM-A.json): context if there is one, question, lettered choices."""
    hint, choices = field(problem, "hint", file, key), field(problem, "choices", file, key)
    lines = [f"Context: {hint}"] if hint else []
    lines += [field(problem, "question", file, key)]
    lines += [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, choices, strict=False)]
    text = "\n".join(lines).strip() + OPTION_LETTER
    image = field(problem, "image", file, key)
    found = () if image is None else (image_in(images, f"{key}/{image}", f"{file}, problem {key}"),)
    prompt = f"{IMAGE_TOKEN}\n{text}" if found else text
    return Question(key, found, text, prompt=prompt, where=f"{file}, problem {key}")
