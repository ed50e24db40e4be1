"""Pieces that made-up answers are made of: what models say that scorers read in different ways.

Left out: U+0130, the one letter whose lower case differs between Python 2 (VQA's evaluation) and Python 3.
"""

from __future__ import annotations

import random

WORDS = (
    "a", "an", "the", "A", "The", "cat", "dog", "dogs", "tennis racket", "no", "No", "NO", "not", "yes", "Yes", "YES",
    "none", "zero", "one", "Two", "three", "ten", "eleven", "0", "1", "2", "10", "1,000", "1,,000", "10,000.5", "3.5",
    "3.", ".5", "2:30", "12/5", "50%", "$5", "u.s.a", "U.S.", "mr.", "dont", "don't", "couldnt've", "Im", "i'm", "ive",
    "shes", "somebody'd", "ow's'at", "let's", "dog's", "dogs'", "man's hat", "t-shirt", "t - shirt", "red/white",
    "left", "right", "unanswerable", "café", "naïve", "２", "٣", "猫", "“yes”", "🐱", "ß", "\u00a0", "e\u0301",
    "nothing", "north", "cannot", "know", "noon", "I", "is", "it", "answer", "Answer", "red", "UNKNOWN",
    "blue and green", "wait" + "." * 40,
)  # fmt: skip
MARKS = tuple(";/[]\"{}()=+\\_-><@`,?!.':")
SEPARATORS = (" ", " ", " ", " ", "  ", ", ", ". ", ".", " - ", "-", "\n", "\t", "", "? ", "! ")
NUMBER_WORDS = {"0": "zero", "1": "one", "2": "two", "3": "three", "10": "ten"}


def phrase(rng: random.Random, most: int = 6, line_breaks: bool = True) -> str:
    """A made-up answer of up to `most` words with separators and marks in odd places; often short, sometimes empty."""
    separators = SEPARATORS if line_breaks else tuple(mark for mark in SEPARATORS if mark not in "\n\t")
    text = ""
    for position in range(rng.choice((0, 1, 1, 1, 2, 2, 3, most))):
        text += (rng.choice(separators) if position else "") + rng.choice(WORDS)
        if rng.random() < 0.2:
            text += rng.choice(MARKS)
    return text if rng.random() < 0.9 else rng.choice((f" {text}", f"{text} ", text.upper(), text.title(), f"{text}."))


def disguised(rng: random.Random, answer: str) -> str:
    """The same answer as another person would write it; not always the same after normalisation."""
    for digits, word in NUMBER_WORDS.items():
        if answer == digits and rng.random() < 0.5:
            answer = word
    return rng.choice(
        (
            answer,
            answer,
            answer,
            answer.upper(),
            answer.capitalize(),
            f"{answer}.",
            f" {answer} ",
            f"the {answer}",
            f"a {answer}!",
            f'"{answer}"',
            f"{answer}\n",
            answer.replace("'", ""),
            answer.replace(" ", "-"),
            answer.replace(" ", "  "),
            answer.replace(" ", ", "),
            f"{answer},",
            f"{answer}?",
            f"({answer})",
        )
    )
