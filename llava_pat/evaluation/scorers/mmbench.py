"""MMBench without its judge: the option's letter, and circular evaluation.

The official evaluation asks ChatGPT where no letter can be read; here such an answer is wrong, and counted. Circular
evaluation is the official one (arXiv 2307.06281): a question is right if it is right under every rotation of its
options. The files bring the rotations as rows whose index is the question's plus a multiple of 1,000,000; --all-rounds
makes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ROTATION = 1_000_000
_LETTER_FIRST = re.compile(r"\(?([A-D])(?:[).:,\s]|$)")
_STATED = re.compile(r"(?:answer|option|答案|选项)\s*(?:is|:|：|是|为)?\s*:?\s*\(?([A-D])\b", re.IGNORECASE)


def option_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer gives: in front ("B", "(B) cat"), stated ("the answer is B"), or by the option's text.

    Args:
        text: the answer.
        options: the options as they were shown, A first.

    Returns:
        A letter that the question has, else None.
    """
    letters = "ABCD"[: len(options)]
    answer = text.strip()
    front = _LETTER_FIRST.match(answer)
    if front and not _is_article(front.group(0), answer):
        return front.group(1) if front.group(1) in letters else None
    stated = {letter.upper() for letter in _STATED.findall(answer)}
    if len(stated) == 1 and stated <= set(letters):
        return stated.pop()
    same = [
        letter
        for letter, option in zip(letters, options, strict=True)
        if option.strip().lower() == answer.rstrip(".").lower()
    ]
    return same[0] if len(same) == 1 else None


def original_letter(shown: str, option_char: Sequence[str]) -> str:
    """The file's letter of the option shown as `shown`; `option_char` is LLaVA's: the file's letters in shown order."""
    return option_char["ABCD".index(shown)]


def circular(right: Mapping[int, Sequence[bool]]) -> dict[int, bool]:
    """Index -> whether each row was right, merged to questions: right only if all of their rotations are."""
    merged: dict[int, bool] = {}
    for index, outcomes in right.items():
        question = index % ROTATION
        merged[question] = merged.get(question, True) and all(outcomes)
    return merged


def _is_article(start: str, answer: str) -> bool:
    """Whether "A" begins a sentence ("A cat on a mat") and is no letter of an option."""
    return start == "A " and len(answer.split()) > 1
