"""POPE: yes or no from a free answer, then F1, accuracy, precision, recall and the share of yes.

As LLaVA's `llava/eval/eval_pope.py` (haotian-liu/LLaVA at c121f04) does it: the text before the first full stop, commas
removed, split at single spaces; `No`, `no` or `not` among the words is a no, everything else a yes, an empty answer as
well. `NO` and `No!` are therefore a yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NO_WORDS = ("No", "not", "no")


@dataclass(frozen=True)
class PopeCounts:
    """Answers against labels, yes being the positive class."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def accuracy(self) -> float:
        return _ratio(self.true_positive + self.true_negative, self.total)

    @property
    def precision(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        return _ratio(self.true_positive + self.false_positive, self.total)

    @property
    def total(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative


def says_yes(text: str) -> bool:
    """What LLaVA takes the answer for."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in NO_WORDS for word in words)


def pope_counts(answers: Sequence[str], labels: Sequence[str]) -> PopeCounts:
    """Count answers against labels; a label other than "no" is a yes, as in the original.

    Raises:
        ValueError: as many answers as labels are needed, at least one.
    """
    if len(answers) != len(labels) or not labels:
        raise ValueError(f"{len(answers)} answers for {len(labels)} labels; POPE needs one each, and at least one")
    pairs = [(says_yes(answer), label != "no") for answer, label in zip(answers, labels, strict=True)]
    return PopeCounts(
        true_positive=pairs.count((True, True)),
        false_positive=pairs.count((True, False)),
        true_negative=pairs.count((False, False)),
        false_negative=pairs.count((False, True)),
    )


def _ratio(part: float, whole: float) -> float:
    """0 where the original divides by zero (a model that only ever says yes, or no)."""
    return part / whole if whole else 0.0
