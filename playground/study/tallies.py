"""Figures as sums over scenes, so that scenes can be drawn again: a metric is a ratio of sums, or a mean of ratios.

A tally is an array [scenes, 2] of (score, count) or [scenes, 3] of (true positives, false positives, false negatives).
Pooled over scenes it gives one figure, 0 to 1:

    share   sum of scores / sum of counts
    f1      2 tp / (2 tp + fp + fn)

What is asked about one scene shares its pixels: scenes are independent of each other, questions about one are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from playground.text import QUESTION_TYPES

TURN_TYPES = (*QUESTION_TYPES, "rec", "reg", "caption")


def share(pooled: np.ndarray) -> np.ndarray:
    """[..., 2] -> [...]; nan where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return pooled[..., 0] / pooled[..., 1]


def f1(pooled: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]; 0 where there is nothing right."""
    right = 2 * pooled[..., 0]
    total = right + pooled[..., 1] + pooled[..., 2]
    return np.where(right > 0, right / np.maximum(total, 1e-12), 0.0)


@dataclass(frozen=True)
class Metric:
    """The mean of `pool` over `tallies`. `title` and `definition` are for tables."""

    name: str
    title: str
    group: str
    tallies: tuple[str, ...]
    pool: Callable[[np.ndarray], np.ndarray]
    definition: str

    def of(self, pooled: Mapping[str, np.ndarray]) -> np.ndarray:
        """Tallies summed over scenes, [..., 2 or 3] each -> [...], times 100."""
        return 100 * np.mean([self.pool(pooled[name]) for name in self.tallies], axis=0)


def _share(name: str, title: str, group: str, definition: str, tallies: tuple[str, ...] | None = None) -> Metric:
    return Metric(name, title, group, tallies or (name,), share, definition)


METRICS = (
    _share("cider", "caption CIDEr", "captions", "mean over scenes of CIDEr against five references (pycocoevalcap)"),
    Metric("object_f1", "caption object F1", "captions", ("objects",), f1, "F1 of the set of (colour, kind) pairs that "
           "a caption names against those in the scene, pooled over scenes"),
    Metric("kind_f1", "caption kind F1", "captions", ("kinds",), f1, "the same for the set of kinds alone"),
    _share("rec", "REC accuracy at IoU 0.5", "grounding", "share of referring expressions whose box has IoU >= 0.5"),
    _share("rec_iou", "REC mean IoU", "grounding", "mean IoU; an answer without a box counts as 0"),
    _share("qa", "QA, mean of types", "questions", "mean of the five types' shares of exactly right answers",
           tuple(f"qa_{kind}" for kind in QUESTION_TYPES)),
    *(_share(f"qa_{kind}", f"QA {kind}", "questions", f"share of exactly right answers to {kind} questions")
      for kind in QUESTION_TYPES),
    _share("instruct", "instruction mix", "instructions", "held-out conversations turn by turn, the true turns before: "
           "mean over the eight types of turn of the share that is right",
           tuple(f"instruct_{kind}" for kind in TURN_TYPES)),
    *(_share(f"instruct_{kind}", f"instruction mix: {kind}", "instructions", "right is: " + {
        "rec": "IoU >= 0.5", "caption": "every object named, and no other"}.get(kind, "the exact answer"))
      for kind in TURN_TYPES),
    _share("instruct_text", "instruction mix: scenes as text", "instructions", "turns of the conversations without an "
           "image, of all types; not in the mean"),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}


def pool(tallies: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each tally summed over its scenes."""
    return {name: table.sum(0) for name, table in tallies.items()}


def figures(tallies: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Every metric whose tallies are there and counted anything."""
    pooled = pool(tallies)
    found = {m.name: float(m.of(pooled)) for m in METRICS if all(name in pooled for name in m.tallies)}
    return {name: value for name, value in found.items() if np.isfinite(value)}
