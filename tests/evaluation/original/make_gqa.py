"""Made-up GQA questions of all types with made-up answers."""

from __future__ import annotations

import random
from typing import Any

from tests.evaluation.original.ingredients import WORDS, disguised, phrase

SEED = 12578
COUNT = 1500
STRUCTURAL = ("verify", "query", "choose", "logical", "compare")
SEMANTIC = ("obj", "attr", "cat", "rel", "global")
OPERATIONS = (
    ("select", "dog (1)"),
    ("relate", "man,to the left of,s"),
    ("query", "name"),
    ("exist", "?"),
    ("verify color", "red"),
)


def make() -> dict[str, dict[str, Any]]:
    """Question id -> an entry of GQA's questions file, with the model's text under "text"."""
    rng = random.Random(SEED)
    items = {}
    for number in range(COUNT):
        gold = rng.choice((rng.choice(WORDS).lower(), "yes", "no", "left"))
        operations = rng.sample(OPERATIONS, rng.randrange(1, 5))
        items[f"{number:07d}"] = {
            "question": f"Is the {phrase(rng, line_breaks=False)} there?",
            "imageId": f"n{number}",
            "answer": gold,
            "isBalanced": rng.random() < 0.9,
            "types": {"structural": rng.choice(STRUCTURAL), "semantic": rng.choice(SEMANTIC), "detailed": "existAttr"},
            "groups": {"global": rng.choice((None, "color", "animal", "place")), "local": None},
            "semantic": [{"operation": name, "argument": argument} for name, argument in operations],
            "entailed": [],
            "text": disguised(rng, gold) + rng.choice(("", "", ".", "..", ". ")) if rng.random() < 0.8 else phrase(rng),
        }
    return items
