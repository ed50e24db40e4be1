"""Made-up answers to MMMU's multiple-choice and open questions."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import WORDS, phrase

SEED = 900
COUNT = 1000
CHOICE_FORMS = (
    "{}", "({})", "{}.", "The answer is ({}).", "The answer is {}", "({}) or ({other})", "{} and {other} fit",
    "{text}", "I think that it must be {text} here, as I said", "It cannot be {other} so it is {} then", "answer: {}",
    "'{}'", "{}:", "lower {}, I would say, but ({other}) may be right as well",
    "none of them is right, I am afraid, sorry",
)  # fmt: skip
OPEN_FORMS = (
    "{}", "The answer is {}.", "so {} = {}", "It could be {}\nTherefore the result is {}", "x = 3 thus {}", "is {} is ",
    "final answer {}!", "about {} or 1.5e3 and -2,000", "{} is", "The Result is. It is {}", ": {}", "answer :",
    "{}e5", "= {}",
)  # fmt: skip
GOLD = ("0.5", "12", "-3", "1,234.567", "cat", "Ohm's law", "x", "7", "3/4", "1e3", "nan", "inf", "10%", "café", "")


def make() -> dict[str, list[dict[str, Any]]]:
    """`{"choice": [{"options", "answer", "text"}], "open": [{"answer": str or list, "text"}]}`, COUNT each."""
    rng = random.Random(SEED)
    choice, opened = [], []
    for _ in range(COUNT):
        options = {
            letter: rng.choice((phrase(rng, 3), rng.choice(WORDS))) for letter in "ABCDEFG"[: rng.randrange(2, 8)]
        }
        letter, other = rng.choice(tuple(options)), rng.choice("ABCDEFG")
        text = rng.choice(CHOICE_FORMS).format(letter, other=other, text=options[letter])
        choice.append(
            {
                "options": options,
                "answer": rng.choice(tuple(options)),
                "text": text if rng.random() < 0.9 else phrase(rng),
            }
        )
        gold = rng.choice(GOLD) if rng.random() < 0.7 else [rng.choice(GOLD), rng.choice(GOLD)]
        meant = rng.choice((gold if isinstance(gold, str) else gold[0], rng.choice(GOLD), phrase(rng, 3)))
        text = rng.choice(OPEN_FORMS).format(meant, rng.choice(GOLD))
        opened.append({"answer": gold, "text": text if rng.random() < 0.9 else phrase(rng)})
    return {"choice": choice, "open": opened}
