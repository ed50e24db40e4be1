"""SEED-Bench: an answer is right if it is the letter and nothing else.

As LLaVA's `scripts/convert_seed_for_submission.py` (c121f04): " A", "A." and "a" are wrong; no answer is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def seed_metrics(
    questions: Sequence[Mapping[str, Any]], answers: Sequence[str | None], type_names: Mapping[int, str]
) -> dict[str, float]:
    """Accuracy in percent: overall, by `data_type` (image, video), by type of question.

    Args:
        questions: entries of SEED-Bench.json, with `answer`, `data_type` and `question_type_id`.
        answers: one for each question, None for none.
        type_names: question_type_id -> name.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("no SEED-Bench questions to score")
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        correct = answer == question["answer"]
        for metric in ("total", question["data_type"], f"type_{type_names[question['question_type_id']]}"):
            right[metric].append(correct)
    first = [metric for metric in ("image", "video", "total") if metric in right]
    return {metric: 100 * sum(right[metric]) / len(right[metric]) for metric in first + sorted(set(right) - set(first))}
