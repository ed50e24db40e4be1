"""Made-up reviews of a judge, in LLaVA-Bench's three categories."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import phrase

SEED = 60
COUNT = 1000
CATEGORIES = ("llava_bench_conv", "llava_bench_detail", "llava_bench_complex")
FORMS = (
    *("{} {}",) * 8, "{},{}", "{}, {}", "{} {} ", "{}\t{}", "{}", "{} {} {}", "Scores: {} {}", "{}/10 {}/10",
)  # fmt: skip


def make() -> list[dict[str, Any]]:
    """`{"question_id", "category", "content"}`."""
    rng = random.Random(SEED)
    reviews = []
    for number in range(COUNT):
        scores = [rng.choice((f"{rng.randrange(1, 11)}", f"{rng.randrange(1, 10)}.5")) for _ in range(3)]
        content = rng.choice(FORMS).format(*scores) + rng.choice(("", "\n", "\n", "\n")) + phrase(rng)
        reviews.append({"question_id": number, "category": rng.choice(CATEGORIES), "content": content})
    return reviews
