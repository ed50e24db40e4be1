"""One stage-2 checkpoint on one split: answers through llava_pat's evaluation, scored scene by scene.

    python -m playground.study evaluate checkpoints/llava-v1.5-playground-pat --split val --out OUT [--scenes 50]

Questions, prompts, answering and scorers are those of `bash scripts/eval.sh` (captions, REC, VQA); the turns of
held-out conversations come in addition. OUT/answers/*.jsonl survive a kill; OUT/scores.json holds figures and tallies.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import transformers

from llava_pat.data.regions import load_regions
from llava_pat.evaluation.answers import answers_by_id, read_answers
from llava_pat.evaluation.benchmark import Benchmark
from llava_pat.evaluation.model import Answerer
from llava_pat.evaluation.questions import Question
from llava_pat.evaluation.run import answer_questions
from llava_pat.evaluation.tasks.playground_caption import PlaygroundCaption
from llava_pat.evaluation.tasks.playground_rec import PlaygroundRec
from llava_pat.evaluation.tasks.playground_vqa import PlaygroundVqa
from llava_pat.evaluation.vqa_files import listed
from llava_pat.types import DataError
from playground.generate import EVAL_FOLDERS
from playground.study.dialogue import read_turns, turn_tallies
from playground.study.files import write_json
from playground.study.scoring import caption_tallies, qa_tallies, rec_tallies
from playground.study.tallies import figures
from playground.text import QUESTION_TYPES

SCORES = "scores.json"
BATCH = 32
TURN_TOKENS = 64


class Split:
    """The files of one split, cut to its first scenes."""

    def __init__(self, data: Path, split: str, scenes: int | None) -> None:
        """Raises DataError where the split's files are not there."""
        self.root, self.images, self.name = data / EVAL_FOLDERS[split], data / "images", split
        regions = data / f"regions_{split}.jsonl"
        if not regions.is_file():
            raise DataError(f"{regions} is not there: python -m playground.generate --out {data}")
        entries = list(load_regions(regions).values())
        self.scenes = len(entries) if scenes is None else min(scenes, len(entries))
        self.labels = {scene: [region.label for region in entries[scene].regions] for scene in range(self.scenes)}

    def ask(self, benchmark: Benchmark) -> list[Question]:
        return self.cut(benchmark.questions(self.root))

    def turns(self) -> list[Question]:
        return [q for q in read_turns(self.root / "instruct.json", self.images) if q.extra["scene"] < self.scenes]

    def cut(self, questions: Sequence[Question]) -> list[Question]:
        return [question for question in questions if scene_of(question) < self.scenes]


def scene_of(question: Question) -> int:
    """images/<split>/NNNNNN.png"""
    return int(question.images[0].stem)


def benchmarks(split: str) -> dict[str, Benchmark]:
    """llava_pat's playground benchmarks, about this split. POPE is left out: half of all questions, all of one kind."""
    found = {"captions": PlaygroundCaption(), "rec": PlaygroundRec(), "qa": PlaygroundVqa()}
    found["rec"].split = split
    found["qa"].image_name = split + "/{:06d}.png"
    return found


def evaluate(checkpoint: Path, data: Path, split: str, out: Path, scenes: int | None) -> dict:
    """Figures (0 to 100) and tallies of a checkpoint; what `out` holds of its answers already is not asked again."""
    files = Split(data, split, scenes)
    asked = {name: (kind, files.ask(kind)) for name, kind in benchmarks(split).items()}
    turns = files.turns()
    answerer = Answerer.from_folder(checkpoint)
    part = "" if scenes is None else f"-{files.scenes}"

    def answers(name: str, questions: list[Question], tokens: int) -> dict[str | int, str]:
        file = out / "answers" / f"{name}{part}.jsonl"
        answer_questions(answerer, questions, file, max_new_tokens=tokens, batch_size=BATCH)
        return answers_by_id(questions, read_answers(file))

    said = {name: answers(name, questions, kind.max_new_tokens) for name, (kind, questions) in asked.items()}
    said["turns"] = answers("turns", turns, TURN_TOKENS)
    tallies, further = _scored(files, asked, said)
    tallies |= turn_tallies(turns, said["turns"], files.labels, files.scenes)
    counts = {name: len(texts) for name, texts in said.items()}
    content = {
        "checkpoint": str(checkpoint),
        "split": split,
        "scenes": files.scenes,
        "whole": scenes is None,
        "questions": counts,
        "metrics": figures(tallies) | further,
        "tallies": {name: _compact(table) for name, table in tallies.items()},
    }
    write_json(out / SCORES, content)
    return content


def _scored(
    files: Split, asked: dict[str, tuple[Benchmark, list[Question]]], said: dict[str, dict[str | int, str]]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Tallies, and METEOR, which is a figure of all captions together."""
    scenes = files.scenes
    kind, questions = asked["captions"]
    scored, _ = kind.caption_scores(files.root, {q.key: said["captions"][q.id] for q in questions})
    by_scene = {scene_of(q): said["captions"][q.id] for q in questions}
    cider = {scene_of(q): scored.cider[q.id] for q in questions}
    tallies = caption_tallies(by_scene, files.labels, cider, scenes)
    further = {name.lower(): value for name, value in scored.metrics.items() if name == "METEOR"}
    _, questions = asked["rec"]
    boxes = ((scene_of(q), said["rec"][q.id], q.extra["box"], q.extra["size"]) for q in questions)
    tallies |= rec_tallies(boxes, scenes)
    kind, questions = asked["qa"]
    file = kind.path(files.root, kind.annotations_file)
    notes = {entry["question_id"]: entry for entry in listed(file, "annotations")}
    known = (
        (scene_of(q), notes[q.id]["question_type"], said["qa"][q.id], notes[q.id]["multiple_choice_answer"])
        for q in questions
    )
    return tallies | qa_tallies(known, QUESTION_TYPES, scenes), further


def _compact(table: np.ndarray) -> list[list[float]]:
    """By column, whole numbers as such: small in JSON."""
    return [[int(value) if value == int(value) else round(float(value), 4) for value in column] for column in table.T]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("study evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("playground/data"))
    parser.add_argument("--split", choices=EVAL_FOLDERS, default="val")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, help="only the first N (default: all)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    content = evaluate(**vars(arguments))
    print(json.dumps(content["metrics"], indent=1))
