"""Made-up answers to yes-or-no questions, with labels, in POPE's three categories."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import phrase

SEED = 910
COUNT = 1200
CATEGORIES = ("random", "popular", "adversarial")
STARTS = (
    "Yes",
    "No",
    "no",
    "yes",
    "NO",
    "No,",
    "no.",
    "Not",
    "not",
    "There is no",
    "There is",
    "It is not",
    "I know",
    "",
)


def make() -> list[dict[str, Any]]:
    """`{"question_id", "category", "text", "label"}`, categories in turn."""
    rng = random.Random(SEED)
    return [
        {
            "question_id": number,
            "category": CATEGORIES[number % 3],
            "text": rng.choice(STARTS) + rng.choice(("", " ", ", ", ". ", "\n")) + phrase(rng),
            "label": rng.choice(("yes", "no")),
        }
        for number in range(COUNT)
    ]
