"""VQA's soft accuracy: an answer is right to the share of people who gave it, at most 1 from three people on.

As VQA's own evaluation does it (GT-Vision-Lab/VQA at a013f00, PythonEvaluationTools/vqaEvaluation/vqaEval.py).

It is not M4C's (scorers/m4c.py), although both are called VQA accuracy. This one normalises only where the people
disagree: if all ten wrote "yes", then "Yes" and "yes." are wrong. M4C always normalises, lower-cases first, drops
commas and question marks first, parts "'s" from its word, takes "1,,000" for a number, knows digits beyond
ASCII's and wants exactly ten answers. LLaVA's converter for the server normalises by M4C's rules and the server scores
by these; `vqav2_val` does both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llava_pat.evaluation.scorers.answer_text import plain_words, without_punctuation

_THOUSANDS = re.compile(r"\d,\d", re.ASCII)
_FULL_STOP = re.compile(r"\.(?!\d)", re.ASCII)
_ENOUGH = 3


def leave_one_out(answer: str, references: Sequence[str]) -> float:
    """Mean over the people of min(1, others who gave this very answer / 3)."""
    given = [reference == answer for reference in references]
    return sum(min(1.0, (sum(given) - own) / _ENOUGH) for own in given) / len(given)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Soft accuracy of one answer, 0 to 1.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("no reference answers; VQA accuracy compares with what people said (ten of them)")
    people = [_one_line(reference) for reference in references]
    said = _one_line(answer)
    if len(set(people)) > 1:
        people = [_normalised(reference) for reference in people]
        said = _normalised(said)
    return leave_one_out(said, people)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalised(text: str) -> str:
    return plain_words(without_punctuation(text, _THOUSANDS, _FULL_STOP))
