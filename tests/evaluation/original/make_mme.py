"""Made-up answers to MME's pairs of questions in all fourteen tasks.

No tab or line break: the official format has none.
"""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import phrase

SEED = 2374
IMAGES = 50
TASKS = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
STARTS = (
    "Yes",
    "No",
    "yes",
    "no",
    "YES.",
    "No,",
    " yes",
    "  no",
    "   yes",
    "not",
    "none",
    "I know",
    "eyes",
    "Well, yes",
    "",
    "是",
)


def make() -> list[dict[str, Any]]:
    """`{"task", "image", "question", "label", "text"}`, an image's two questions side by side: yes, then no."""
    rng = random.Random(SEED)
    return [
        {
            "task": task,
            "image": f"{number:04d}.png",
            "question": f"Is this {label}? Please answer yes or no.",
            "label": label,
            "text": rng.choice((label, rng.choice(STARTS)))
            + rng.choice(("", " ", ""))
            + phrase(rng, line_breaks=False),
        }
        for task in TASKS
        for number in range(IMAGES)
        for label in ("Yes", "No")
    ]
