"""Made-up answers to multiple-choice questions of two to five choices, half of them about an image."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import phrase

SEED = 21208
COUNT = 1500
LETTERS = "ABCDE"
FORMS = (
    "{}", "{}", "{}. {}", "{}.", "({})", "{}.{}", " {}", "{} ", "{}: {}", "The answer is {}.", "the answer is {}.",
    "The answer is {}. BECAUSE: {}", "The answer is {}", "The answer is {}. {} The answer is B.", "{}", "Answer: {}",
    "The answer is F.", "F", "e", "{}\n{}",
)  # fmt: skip


def make() -> list[dict[str, Any]]:
    """`{"id", "choices", "answer": index, "image": bool, "text": str or None}`; None: the model said nothing."""
    rng = random.Random(SEED)
    items = []
    for number in range(COUNT):
        choices = rng.randrange(2, 6)
        answer = rng.randrange(choices)
        letter = rng.choice((LETTERS[answer], rng.choice(LETTERS)))
        text = rng.choice(FORMS).format(letter, phrase(rng)) if rng.random() < 0.9 else phrase(rng)
        items.append(
            {
                "id": str(number),
                "choices": [f"choice {index}" for index in range(choices)],
                "answer": answer,
                "image": rng.random() < 0.5,
                "text": None if rng.random() < 0.02 else text,
            }
        )
    return items
