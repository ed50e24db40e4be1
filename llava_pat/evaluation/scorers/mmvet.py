"""MM-Vet: the judge's grades, averaged overall and by capability.

As the official `mm-vet_evaluator.py` (yuweihao/MM-Vet at 7d717c2): a grade is the judge's first word as a number from
0 to 1; a question with several capabilities counts for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence


def grade(reply: str) -> float | None:
    """The grade in a judge's reply, None where its first word is no number from 0 to 1 (to be asked again)."""
    try:
        value = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def mmvet_metrics(grades: Mapping[str, float], capabilities: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Total and score by capability, 0 to 100.

    Args:
        grades: question -> grade, 0 to 1.
        capabilities: question -> its capabilities ("rec", "ocr" ...).

    Raises:
        ValueError: no grade.
    """
    if not grades:
        raise ValueError("no MM-Vet grade to average")
    by_capability: dict[str, list[float]] = defaultdict(list)
    for question, value in grades.items():
        for capability in sorted(set(capabilities[question])):
            by_capability[capability].append(value)
    total = {"total": 100 * sum(grades.values()) / len(grades)}
    return total | {name: 100 * sum(values) / len(values) for name, values in sorted(by_capability.items())}
