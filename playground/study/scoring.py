"""From answers to tallies: one (score, count) or (tp, fp, fn) a scene for captions, boxes, questions and turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from llava_pat.data.geometry import Box
from llava_pat.evaluation.scorers.rec import iou, parse_box, square_to_pixels
from llava_pat.evaluation.scorers.vqa_accuracy import vqa_accuracy
from playground import world

IOU = 0.5
_OBJECT = re.compile(rf"\b({'|'.join(world.COLOURS)}) ({'|'.join(world.KINDS)})\b")
_KIND = re.compile(rf"\b({'|'.join(world.KINDS)})\b")


class Tally:
    """A table that grows by scene."""

    def __init__(self, scenes: int, columns: int) -> None:
        self.table = np.zeros((scenes, columns))

    def add(self, scene: int, *values: float) -> None:
        self.table[scene] += values


def objects_in(caption: str) -> set[tuple[str, str]]:
    """The (colour, kind) pairs that a caption names: the colour stands right before the kind."""
    return set(_OBJECT.findall(caption.lower()))


def kinds_in(caption: str) -> set[str]:
    """The kinds that a caption names, with a colour or without."""
    return set(_KIND.findall(caption.lower()))


def counts(said: set, true: set) -> tuple[int, int, int]:
    """(true positives, false positives, false negatives) of one set against another."""
    return len(said & true), len(said - true), len(true - said)


def caption_tallies(
    captions: Mapping[int, str], labels: Mapping[int, Sequence[str]], cider: Mapping[int, float], scenes: int
) -> dict[str, np.ndarray]:
    """captions, labels ("red six") and CIDEr (0 to 100 and above) by scene."""
    found = {"cider": Tally(scenes, 2), "objects": Tally(scenes, 3), "kinds": Tally(scenes, 3)}
    for scene, caption in captions.items():
        true = {tuple(label.split()) for label in labels[scene]}
        found["cider"].add(scene, cider[scene] / 100, 1)
        found["objects"].add(scene, *counts(objects_in(caption), true))
        found["kinds"].add(scene, *counts(kinds_in(caption), {kind for _, kind in true}))
    return {name: tally.table for name, tally in found.items()}


def box_overlap(answer: str, box: Box, size: tuple[int, int]) -> float:
    """IoU of an answer's box (shares of the padded square) with the true one in pixels; 0 without a box."""
    found = parse_box(answer)
    return 0.0 if found is None else iou(square_to_pixels(found, *size), box)


def rec_tallies(asked: Iterable[tuple[int, str, Box, tuple[int, int]]], scenes: int) -> dict[str, np.ndarray]:
    """asked: (scene, answer, true box in pixels, (width, height))."""
    hits, overlaps = Tally(scenes, 2), Tally(scenes, 2)
    for scene, answer, box, size in asked:
        overlap = box_overlap(answer, box, size)
        hits.add(scene, overlap >= IOU, 1)
        overlaps.add(scene, overlap, 1)
    return {"rec": hits.table, "rec_iou": overlaps.table}


def qa_tallies(asked: Iterable[tuple[int, str, str, str]], kinds: Sequence[str], scenes: int) -> dict[str, np.ndarray]:
    """asked: (scene, type, answer, right answer). Right is VQA accuracy where all ten people say the same."""
    found = {kind: Tally(scenes, 2) for kind in kinds}
    for scene, kind, answer, right in asked:
        found[kind].add(scene, vqa_accuracy(answer, [right] * 10), 1)
    return {f"qa_{kind}": tally.table for kind, tally in found.items()}


def turn_is_right(kind: str, answer: str, right: str, labels: Sequence[str], square: tuple[int, int]) -> bool:
    """Whether a turn of a conversation is answered right (see tallies.METRICS).

    labels: the scene's objects. square: (1, 1) side of the padded square; both boxes are shares of it.
    """
    if kind == "rec":
        return box_overlap(answer, parse_box(right), square) >= IOU
    if kind == "caption":
        return objects_in(answer) == {tuple(label.split()) for label in labels}
    return answer.strip() == right
