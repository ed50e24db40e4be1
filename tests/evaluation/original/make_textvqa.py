"""Made-up TextVQA answers in all four prompt forms that LLaVA's evaluation knows."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import WORDS, disguised, phrase

SEED = 51
COUNT = 1500
SUFFIX = "Answer the question using a single word or phrase."


def make() -> list[dict[str, Any]]:
    """`{"image_id", "question", "prompt", "answer", "references"}`; three questions an image."""
    rng = random.Random(SEED)
    items = []
    for number in range(COUNT):
        question = f"What {rng.choice(WORDS)} {rng.choice(('is this', 'Does IT say'))} {number}?".replace("\n", " ")
        tokens = ", ".join(rng.choice(WORDS) for _ in range(rng.randrange(4)))
        prompt = rng.choice(
            (
                f"{question}\n{SUFFIX}",
                f"{question}\nReference OCR token: {tokens}\n{SUFFIX}",
                f"Reference OCR token: {tokens}\n{question}\n{SUFFIX}",
                f"OCR tokens: {tokens}. Question: {question} Short answer:",
            )
        )
        meant = [rng.choice((phrase(rng, most=4), rng.choice(WORDS))) for _ in range(rng.choice((1, 2, 3, 5)))]
        items.append(
            {
                "image_id": f"{number // 3:016x}",
                "question": question,
                "prompt": prompt,
                "answer": disguised(rng, rng.choice(meant)) if rng.random() < 0.85 else phrase(rng),
                "references": [disguised(rng, rng.choice(meant)) for _ in range(10)],
            }
        )
    return items
