"""MME: yes or no in the first four characters; a task's score is accuracy + accuracy+ (both of an image's right).

As the official `calculation.py` does it (eval_tool.zip in tools/ of BradyFU/Awesome-Multimodal-Large-Language-Models,
branch Evaluation at dd29509). Scores are 0 to 200 a task; perception has ten tasks, cognition four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PREFIX = 4


def mme_answer(text: str) -> Literal["yes", "no", "other"]:
    """What the official script takes an answer for. "other" is wrong whatever the label."""
    start = text.lower()[:_PREFIX]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def mme_score(answers: Sequence[str], labels: Sequence[str]) -> float:
    """A task's score, 0 to 200.

    Args:
        answers: in the order of the images, an image's two answers side by side.
        labels: "Yes" or "No" in any case, likewise.

    Raises:
        ValueError: not as many answers as labels, an odd number of them, none, or another label.
    """
    if len(answers) != len(labels) or not labels or len(labels) % 2:
        raise ValueError(f"{len(answers)} answers for {len(labels)} labels; MME asks two questions about each image")
    expected = [label.lower() for label in labels]
    if not set(expected) <= {"yes", "no"}:
        raise ValueError(f"MME's labels are yes and no, these have {sorted(set(expected) - {'yes', 'no'})}")
    right = [mme_answer(answer) == label for answer, label in zip(answers, expected, strict=True)]
    both = [first and second for first, second in zip(right[::2], right[1::2], strict=True)]
    return 100 * sum(right) / len(right) + 100 * sum(both) / len(both)
