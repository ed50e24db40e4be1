"""Made-up answers to SEED-Bench's questions about images and videos."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import phrase

SEED = 19242
COUNT = 1500
TYPES = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instances Counting": 5,
    "Text Understanding": 9,
    "Action Recognition": 10,
    "Procedure Understanding": 12,
}
FORMS = ("{}", "{}", "{}", "{}", "{}.", " {}", "{} ", "({})", "{}. cat", "the answer is {}", "{}\n")


def make() -> dict[str, Any]:
    """SEED-Bench.json with the model's text under "text" of each question; None: not answered."""
    rng = random.Random(SEED)
    questions = []
    for number in range(COUNT):
        kind = rng.choice(tuple(TYPES.values()))
        answer = rng.choice("ABCD")
        said = rng.choice((answer, rng.choice("ABCD")))
        text = rng.choice(FORMS).format(said if rng.random() < 0.95 else said.lower())
        questions.append(
            {
                "question_id": str(number) if kind < 10 else f"v{number}",
                "question_type_id": kind,
                "data_type": "image" if kind < 10 else "video",
                "answer": answer,
                "text": None if rng.random() < 0.02 else text if rng.random() < 0.95 else phrase(rng),
            }
        )
    return {"questions": questions, "question_type": TYPES}
