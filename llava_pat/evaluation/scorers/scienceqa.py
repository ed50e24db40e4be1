"""ScienceQA: the option's letter in an answer, as LLaVA's `llava/eval/eval_science_qa.py` (c121f04) finds it."""

from __future__ import annotations

import re

OPTIONS = ("A", "B", "C", "D", "E")
_STATED = re.compile(r"The answer is ([A-Z]).")


def scienceqa_letter(text: str) -> str | None:
    """The letter given: alone, in front of ". ", or once in "The answer is X" with any character behind."""
    if text in OPTIONS:
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def scienceqa_index(text: str, choices: int) -> int | None:
    """Index of the choice that the answer gives, None where it gives none that the question has."""
    letter = scienceqa_letter(text)
    return OPTIONS.index(letter) if letter in OPTIONS[:choices] else None
