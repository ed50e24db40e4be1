"""The instruction mix: held-out conversations asked turn by turn, with the true turns before each question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llava_pat.evaluation.questions import Question
from llava_pat.types import Turn
from playground.study.scoring import Tally, turn_is_right
from playground.study.tallies import TURN_TYPES

UNIT_SQUARE = (1, 1)


def read_turns(file: Path, images: Path) -> list[Question]:
    """A question for each turn of `eval*/instruct.json`; `extra` has its scene, type and right answer."""
    questions = []
    for conversation in json.loads(file.read_text()):
        history: list[Turn] = []
        name = conversation["id"]
        shown = (images / conversation["image"],) if "image" in conversation else ()
        for place, turn in enumerate(conversation["turns"]):
            extra = {"scene": int(name.split("-")[1]), "type": turn["type"], "answer": turn["answer"]}
            where = f"{file}: {name}, turn {place}"
            asked = Question(f"{name}/{place}", shown, turn["question"], extra, where=where, history=tuple(history))
            questions.append(asked)
            history += [Turn("human", turn["question"]), Turn("gpt", turn["answer"])]
    return questions


def turn_tallies(
    questions: Sequence[Question], answers: Mapping[str, str], labels: Mapping[int, Sequence[str]], scenes: int
) -> dict[str, np.ndarray]:
    """answers: by question id; labels: the objects of each scene."""
    found = {kind: Tally(scenes, 2) for kind in (*TURN_TYPES, "text")}
    for question in questions:
        kind, scene = question.extra["type"], question.extra["scene"]
        right = turn_is_right(kind, answers[question.id], question.extra["answer"], labels[scene], UNIT_SQUARE)
        found[kind if question.images else "text"].add(scene, right, 1)
    return {f"instruct_{kind}": tally.table for kind, tally in found.items()}
