"""Made-up short answers with ten references each, for VQA's soft accuracy and for M4C's."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import WORDS, disguised, phrase

SEED = 20151
COUNT = 2000


def make() -> list[dict[str, Any]]:
    """`{"answer", "references": ten strings, "question_type", "answer_type"}`; in one of five, the people agree."""
    rng = random.Random(SEED)
    items = []
    for _ in range(COUNT):
        meant = [rng.choice((phrase(rng, most=4), rng.choice(WORDS))) for _ in range(rng.choice((1, 2, 3, 5)))]
        if rng.random() < 0.2:
            references = [disguised(rng, meant[0])] * 10
        else:
            references = [disguised(rng, rng.choice(meant)) for _ in range(10)]
        answer = disguised(rng, rng.choice(meant)) if rng.random() < 0.85 else phrase(rng)
        items.append(
            {
                "answer": answer,
                "references": references,
                "question_type": rng.choice(("what is", "how many", "is the")),
                "answer_type": rng.choice(("yes/no", "number", "other")),
            }
        )
    return items
