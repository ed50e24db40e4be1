"""What VQA's and M4C's normalisation of short answers share: punctuation, number words, articles, contractions.

The tables are those of VQA's evaluation (GT-Vision-Lab/VQA at a013f00, PythonEvaluationTools/vqaEvaluation/vqaEval.py);
M4C's are equal (LLaVA at c121f04, llava/eval/m4c_evaluator.py). Oddities of theirs are kept: without them scores differ
from the published ones.
"""

from __future__ import annotations

import re

NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_MOST_PERIODS = 32
"""The originals pass re.UNICODE (32) where re.sub takes the number of replacements: later full stops stay."""

_SPELT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm "
    "I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've"
)
"""Recognised with every apostrophe missing."""
_HALF_SPELT = (
    "couldn'tve couldnt've=couldn't've hadnt've hadn'tve=hadn't've hed've he'dve=he'd've Id've I'dve=I'd've "
    "itd've it'dve=it'd've mightnt've mightn'tve=mightn't've ow's'at 'ows'at 'ow'sat='ow's'at shed've she'dve=she'd've "
    "shouldnt've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've somebody'dve=somebody'd've "
    "someoned've someone'dve=someone'd've somethingd've something'dve=something'd've thered've there'dve=there'd've "
    "theyd've they'dve=they'd've wed've we'dve=we'd've whod've who'dve=who'd've wouldnt've wouldn'tve=wouldn't've "
    "yall'll y'allll=y'all'll yall'd've y'alld've y'all'dve=y'all'd've youd've you'dve=you'd've"
)
"""Groups `as written, as written=meant`: those with one apostrophe missing. "somebody'd" loses its own, as there."""


def _contractions() -> dict[str, str]:
    table = {meant.replace("'", ""): meant for meant in _SPELT.split()}
    waiting: list[str] = []
    for word in _HALF_SPELT.split():
        written, found, meant = word.partition("=")
        waiting.append(written)
        if found:
            table.update(dict.fromkeys(waiting, meant))
            waiting.clear()
    return table


CONTRACTIONS = _contractions()


def without_punctuation(text: str, thousands: re.Pattern[str], full_stop: re.Pattern[str]) -> str:
    """Each mark is removed where the text has it beside a space, or has a number like 1,000; else it becomes a space.

    Args:
        text: an answer.
        thousands: a comma within a number.
        full_stop: those to remove: unless a digit follows. VQA's digits are ASCII's, as it is Python 2; M4C's are all.
    """
    has_thousands = thousands.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or has_thousands else " ")
    return full_stop.sub("", result, count=_MOST_PERIODS)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions spelt out, single spaces."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
