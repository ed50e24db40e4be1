"""SEED-Bench: multiple choice about images, and about the middle frames of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from llava_pat.data.json_files import field, read_json
from llava_pat.evaluation.benchmark import Answers, Benchmark, Needed, Scores, texts_of
from llava_pat.evaluation.prompts import OPTION_LETTER
from llava_pat.evaluation.questions import Question, image_in, read_questions
from llava_pat.evaluation.scorers.seed import seed_metrics
from llava_pat.evaluation.submissions import write_jsonl
from llava_pat.evaluation.vqa_files import listed
from llava_pat.types import DataError

PAGE = "https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md"
LABELS = "SEED-Bench.json"
IMAGES = "SEED-Bench-image"
FRAMES = "SEED-Bench-video-image"
READY = "llava-seed-bench.jsonl"
_LABELS = Needed(LABELS, "questions and answers", "https://huggingface.co/datasets/AILab-CVC/SEED-Bench")
_IMAGES = Needed(IMAGES, "images", PAGE)


class SeedImage(Benchmark):
    """SEED-Bench, questions about images (14,233), scored here. LLaVA's MODEL_ZOO figure is of `seed_all`."""

    name = "seed"
    title = "SEED-Bench (image)"
    folder = "seed_bench"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    needs = (_LABELS, _IMAGES)

    def questions(self, root: Path) -> list[Question]:
        for needed in self.needs:
            self.path(root, needed.path)
        folder, entries = root / self.folder, self._entries(root)
        if (folder / READY).is_file():
            return [q for q in read_questions(folder / READY, folder, unique_ids=True) if str(q.id) in entries]
        file = self.path(root, LABELS)
        return [_built(key, entry, file, folder) for key, entry in entries.items()]

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        questions = self.questions(root)
        texts, notes = texts_of(self.name, questions, answers)
        labels = self._entries(root)
        entries = [labels[str(question.id)] for question in questions]
        file = self.path(root, LABELS)
        names = {number: name for name, number in field(read_json(file), "question_type", file, "top level").items()}
        metrics = seed_metrics(entries, texts, names)
        if notes or len(questions) < len(labels):
            return Scores(metrics, notes=[*notes, "no submission file: the leaderboard wants every answer"])
        said = {str(question.id): text for question, text in zip(questions, texts, strict=True)}
        lines = [{"question_id": entry["question_id"], "prediction": said[key]} for key, entry in labels.items()]
        return Scores(metrics, write_jsonl(self.upload_folder(root, out) / f"{self.name}.jsonl", lines), notes)

    def _entries(self, root: Path) -> dict[str, dict[str, Any]]:
        """Question id as text -> entry, of the kinds that this benchmark asks."""
        file = self.path(root, LABELS)
        entries = {
            str(field(entry, "question_id", file, number)): entry
            for number, entry in enumerate(listed(file, "questions"))
            if field(entry, "data_type", file, number) in self.kinds
        }
        if not entries:
            raise DataError(f"{file}: no question about {' or '.join(self.kinds)}; see {PAGE}")
        return entries


class SeedAll(SeedImage):
    """SEED-Bench with the questions about videos, asked about one frame: the 58.6 of LLaVA-1.5-7B's MODEL_ZOO row."""

    name = "seed_all"
    title = "SEED-Bench"
    kinds = ("image", "video")
    needs = (
        _LABELS,
        _IMAGES,
        Needed(FRAMES, "the middle frame of each video", f"{PAGE}, and extract_video_frames.py of LLaVA's eval.zip"),
    )

    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        scores = super().score(root, answers, out)
        metrics = {"total": scores.metrics["total"], **scores.metrics}
        return Scores(metrics, scores.submission, scores.notes)


def _built(key: str, entry: dict[str, Any], file: Path, folder: Path) -> Question:
    """LLaVA's prompt and places: images by `data_id`, frames as <type>_<question>.png."""
    if entry["data_type"] == "image":
        image = image_in(folder / IMAGES, field(entry, "data_id", file, key), f"{file}, question {key}")
    else:
        image = image_in(folder / FRAMES, f"{entry['question_type_id']}_{key}.png", f"{file}, question {key}")
    choices = [f"{letter.upper()}. {field(entry, f'choice_{letter}', file, key)}" for letter in "abcd"]
    text = "\n".join([field(entry, "question", file, key), *choices]) + OPTION_LETTER
    return Question(int(key) if key.isdigit() else key, (image,), text, where=f"{file}, question {key}")
