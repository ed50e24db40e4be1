"""LLaVA-Bench: two scores from a judge's review, and their summary.

As LLaVA's `llava/eval/eval_gpt_review_bench.py` and `summarize_gpt_review.py` (c121f04). A review whose first line is
not two numbers counts as -1 for both answers there, and so it does here; callers should say how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

UNREADABLE = (-1.0, -1.0)


def review_scores(review: str) -> tuple[float, float]:
    """The scores of the reference's answer and of the model's, from the first line."""
    numbers = review.split("\n")[0].replace(",", " ").split(" ")
    if len(numbers) != 2:
        return UNREADABLE
    try:
        return float(numbers[0]), float(numbers[1])
    except ValueError:
        return UNREADABLE


def summarise_reviews(reviews: Sequence[tuple[str, tuple[float, float]]]) -> dict[str, float]:
    """Category -> the model's mean score in percent of the reference's, one decimal; "all" is the benchmark's figure.

    Args:
        reviews: (category, scores) of each question.

    Raises:
        ValueError: no reviews.
    """
    if not reviews:
        raise ValueError("no review to summarise")
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for category, pair in reviews:
        scores["all"].append(pair)
        scores[category].append(pair)
    summary = {}
    for category in ("all", *sorted(set(scores) - {"all"})):
        reference, model = (round(sum(column) / len(column), 3) for column in zip(*scores[category], strict=True))
        summary[category] = round(model / reference * 100, 1)
    return summary
