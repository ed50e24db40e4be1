"""MMMU: which option an answer chooses, and which strings and numbers it claims.

As the official `mmmu/utils/eval_utils.py` (MMMU-Benchmark/MMMU at bb0b95a). An answer from which no option can be read
is a random choice there (seed 42, questions in order); `rng` makes it the same here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

SEED = 42
_EDGES = ",.!?;:'"
_SENTENCE = re.compile(r"\.\s(?=[A-Z])|\n")
_CLAIMS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_FEW_WORDS = 5

Value = str | float


def mmmu_option(answer: str, options: Mapping[str, str], rng: random.Random) -> str:
    """The letter that the answer chooses, the last one mentioned where there are several.

    "(B)" counts before a lone " B ", and that before the text of an option (in answers of more than five words).

    Args:
        answer: the model's.
        options: letter -> text, in order.
        rng: for answers that choose nothing; the official one is `random.Random(42)`, used for the questions in turn.
    """
    text = answer
    for mark in _EDGES:
        text = text.strip(mark)
    text = f" {text} "
    places = [{letter: text.rfind(form.format(letter)) for letter in options} for form in ("({})", " {} ")]
    if len(text.split()) > _FEW_WORDS:
        lower = text.lower()
        places.append({letter: lower.rfind(meaning.lower()) for letter, meaning in options.items()})
    for mentioned in places:
        letter = max(mentioned, key=mentioned.__getitem__)  # the first of equals, as argmax
        if mentioned[letter] >= 0:
            return letter
    return rng.choice(list(options))


def mmmu_values(answer: str) -> set[Value]:
    """What the answer claims: strings in lower case and numbers rounded to two decimals."""
    claims = _claims(answer)
    values: set[Value] = set()
    for claim in claims:
        for part in (claim, *_numbers(claim)):
            values.update(_comparable(part))
    return values


def mmmu_open_is_right(answer: str, gold: str | Sequence[str]) -> bool:
    """Whether a claimed number equals one of the gold answers, or a claimed string contains one."""
    accepted = [value for text in ([gold] if isinstance(gold, str) else gold) for value in _comparable(text)]
    strings = [value for value in accepted if isinstance(value, str)]
    return any(
        any(string in value for string in strings) if isinstance(value, str) else value in accepted
        for value in mmmu_values(answer)
    )


def _claims(answer: str) -> list[str]:
    """What follows "is", "so", "=" ... in each line, the shortest such tail; the whole answer where nothing does."""
    whole = answer.strip().strip(".").lower()
    lines = _SENTENCE.split(whole)
    claims = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_CLAIMS, "=") if number == len(lines) else _CLAIMS
        shortest = ""
        for tail in (line.split(indicator)[-1].strip() for indicator in indicators if indicator in line):
            if not shortest or len(tail) < len(shortest):  # an empty tail wins, and then any other does
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            claims.append(shortest)
    return claims or [whole]


def _numbers(text: str) -> list[str]:
    return [number for pattern in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE) for number in pattern.findall(text)]


def _comparable(text: str) -> list[Value]:
    """A number, or a string in lower case; a single character gets a space in front or behind, so as not to be found
    within every word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
