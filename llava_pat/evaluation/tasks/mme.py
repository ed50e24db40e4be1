"""MME: perception and cognition, two yes-or-no questions about each image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import SHORT_ANSWER
from llava_pat.evaluation.questions import Question
from llava_pat.evaluation.scorers.mme import COGNITION, PERCEPTION, mme_score
from llava_pat.types import DataError

DATA = "MME_Benchmark_release_version"
PAGE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (on request by mail)"
ASKED = "Please answer yes or no."
SUFFIXES = (".jpg", ".png", ".jpeg")


class Mme(Benchmark):
    """MME (2,374 questions), scored here as its calculation.py does. The headline is perception, as in LLaVA's tables.

    Questions come from the release's own folders: a text file of `question<TAB>Yes or No` for each image. LLaVA's
    llava_mme.jsonl has the same, with "Please answer yes or no." replaced by its suffix; so have we.
    """

    name = "mme"
    title = "MME"
    folder = "MME"
    needs = (Needed(DATA, "images and questions, a folder for each of 14 tasks", PAGE),)

    def questions(self, root: Path) -> list[Question]:
        data = self.path(root, DATA)
        if not (data / PERCEPTION[0]).is_dir() and (data / "MME_Benchmark").is_dir():
            data = data / "MME_Benchmark"  # one folder deeper in the zip that is handed round
        return [question for task in (*PERCEPTION, *COGNITION) for question in _asked(data, task)]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        images: dict[tuple[str, object], list[tuple[str, str]]] = defaultdict(list)
        for question, text in zip(questions, texts, strict=True):
            images[question.extra["task"], question.id].append((text or "", question.extra["label"]))
        halves = sum(len(pairs) == 1 for pairs in images.values())
        if halves:
            notes.append(f"{halves} images left out, of which only one question was asked: MME scores pairs")
        tasks: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for (task, _), pairs in images.items():
            tasks[task] += pairs if len(pairs) == 2 else []
        scores = {task: mme_score(*zip(*pairs, strict=True)) for task, pairs in tasks.items() if pairs}
        if not scores:
            raise DataError(f"{self.name}: no image of which both questions were asked; MME scores pairs. Ask more")
        absent = [task for task in (*PERCEPTION, *COGNITION) if task not in scores]
        if absent:
            notes.append(f"sums without {', '.join(absent)}, of which nothing was asked")
        perception, cognition = (sum(scores.get(task, 0.0) for task in part) for part in (PERCEPTION, COGNITION))
        return Scores({"perception": perception, "cognition": cognition, **scores}, notes=notes)


def _asked(data: Path, task: str) -> Iterator[Question]:
    folder = data / task
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: MME has a folder for each of its tasks; see {PAGE}")
    split = (folder / "images").is_dir()
    images, texts = (folder / "images", folder / "questions_answers_YN") if split else (folder, folder)
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise DataError(f"{texts}: no questions (*.txt); see {PAGE}")
    for file in files:
        image = next((images / (file.stem + end) for end in SUFFIXES if (images / (file.stem + end)).is_file()), None)
        if image is None:
            raise DataError(f"{file}: its image {images / file.stem}{{{','.join(SUFFIXES)}}} does not exist")
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        if len(lines) != 2:
            raise DataError(f"{file}: {len(lines)} questions; MME asks 2 about each image")
        for number, line in enumerate(lines, start=1):
            question, tab, label = line.strip().partition("\t")
            if not tab or label.lower() not in ("yes", "no"):
                raise DataError(f"{file}, line {number}: {line!r} is not `question<TAB>Yes or No`")
            yield Question(
                id=image.relative_to(data).as_posix(),
                images=(image,),
                text=question.replace(ASKED, "").strip() + SHORT_ANSWER,
                extra={"task": task, "label": label},
                where=f"{file}, line {number}",
            )
