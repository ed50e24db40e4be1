"""What is said about a scene: captions, questions and answers, referring expressions, and the scene as text.

Boxes are written as LLaVA writes them: `[x1, y1, x2, y2]`, 0-1 with two decimals, relative to the padded square
(the image centred on a square canvas of its longer side), whichever geometry the pixels see. They are rounded to
twentieths: a small world has too few examples to learn a hundred numbers one by one, and a patch is a tenth wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import floor

import numpy as np

from playground.world import COLOURS, DIGITS, KINDS, SHAPES, Scene, Thing

STEPS = 20  # a written coordinate is a multiple of 1 / STEPS
MARGIN = 0.08  # two centres must be this far apart (share of the padded square) for a relation to be asked about
RELATIONS = ("left of", "right of", "above", "below")
QUESTION_TYPES = ("kind", "colour", "count", "existence", "relation")
SHORT_ANSWER = "Answer the question using a single word or phrase."
REC_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: "
REG_PROMPT = "Please provide a short description for this region: "
CAPTION_PROMPTS = (
    "Describe the image.",
    "What is in this picture?",
    "Give a brief description of the image.",
    "Write a short caption for the image.",
)


@dataclass(frozen=True)
class QA:
    """One question with its answer; `type` is one of QUESTION_TYPES, or rec, reg, caption."""

    type: str
    question: str
    answer: str


def square_box(scene: Scene, box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Pixel box -> box relative to the padded square, as LLaVA's data has it."""
    width, height = scene.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return (box[0] + left) / side, (box[1] + top) / side, (box[2] + left) / side, (box[3] + top) / side


def write_box(scene: Scene, box: tuple[int, int, int, int]) -> str:
    """The box in a text, each side at the nearest twentieth."""
    return "[" + ", ".join(f"{floor(value * STEPS + 0.5) / STEPS:.2f}" for value in square_box(scene, box)) + "]"


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def place(scene: Scene, thing: Thing) -> str:
    """Where an object is, in words: one of nine."""
    box = square_box(scene, thing.box)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    row = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    if row and column:
        return f"at the {row} {column}"
    return f"on the {column}" if column else f"at the {row}" if row else "in the middle"


def relation(scene: Scene, a: Thing, b: Thing, which: str) -> bool | None:
    """Whether `a` is left of (right of, above, below) `b`; None when their centres are too close to tell."""
    side = max(scene.size)
    axis = 0 if which in ("left of", "right of") else 1
    difference = (a.centre[axis] - b.centre[axis]) / side
    if abs(difference) < MARGIN:
        return None
    return (difference < 0) == (which in ("left of", "above"))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption in one of five styles. Objects come from left to right, as most people list them."""
    things = sorted(scene.things, key=lambda thing: thing.centre)
    names = [article(thing.label) for thing in things]
    placed = [f"{name} {place(scene, thing)}" for name, thing in zip(names, things, strict=True)]
    style = int(rng.integers(5))
    if style == 0:
        return joined(names)
    if style == 1:
        return f"the image shows {joined(names)}."
    if style == 2:
        return f"there are {len(things)} objects: {joined(names)}."
    if style == 3:
        return f"{joined(placed)}."
    a, b = things[0], things[-1]
    which = next((name for name in ("left of", "above", "below") if relation(scene, a, b, name)), None)
    if which is None:
        return f"a picture of {joined(names)}."
    rest = [article(thing.label) for thing in things[1:-1]]
    tail = f", with {joined(rest)}" if rest else ""
    return f"{article(a.label)} {which} {article(b.label)}{tail}."


def referring(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    """A phrase that fits this object only: the label, or the kind or colour alone, or which of two."""
    same_kind = [other for other in scene.things if other.kind == thing.kind and other is not thing]
    same_colour = [other for other in scene.things if other.colour == thing.colour and other is not thing]
    phrases = [f"the {thing.label}"] * 3
    if not same_kind:
        phrases.append(f"the {thing.kind}")
    if not same_colour:
        phrases.append(f"the {thing.colour} object")
    if len(same_kind) == 1:
        for which, words in (("left of", "on the left"), ("right of", "on the right")):
            if relation(scene, thing, same_kind[0], which):
                phrases.append(f"the {thing.kind} {words}")
    return phrases[rng.integers(len(phrases))]


def questions(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Every type that the scene allows, one of each, in a random order."""
    made = [maker(scene, rng) for maker in (_kind, _colour, _count, _existence, _relation)]
    asked = [qa for qa in made if qa is not None]
    rng.shuffle(asked)
    return asked


def rec(scene: Scene, thing: Thing, rng: np.random.Generator) -> QA:
    phrase = referring(scene, thing, rng)
    question = f"Where is {phrase}?" if rng.random() < 0.5 else REC_PROMPT + phrase
    return QA("rec", question, write_box(scene, thing.box))


def reg(scene: Scene, thing: Thing) -> QA:
    return QA("reg", REG_PROMPT + write_box(scene, thing.box), article(thing.label))


def describe(scene: Scene, rng: np.random.Generator) -> QA:
    return QA("caption", CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))], caption(scene, rng))


def scene_as_text(scene: Scene, rng: np.random.Generator) -> str:
    """The scene for a model without eyes: every object with its box, in a random order."""
    order = rng.permutation(len(scene.things))
    return "; ".join(f"{scene.things[i].label} {write_box(scene, scene.things[i].box)}" for i in order) + "."


def _pick(rng: np.random.Generator, items: list):
    return items[rng.integers(len(items))] if items else None


def _kind(scene: Scene, rng: np.random.Generator) -> QA | None:
    colours = [thing.colour for thing in scene.things]
    thing = _pick(rng, [t for t in scene.things if colours.count(t.colour) == 1])
    if thing is None:
        return None
    noun = "digit" if thing.kind in DIGITS else "shape"
    asked = (f"What is the {thing.colour} object?", f"Which {noun} is {thing.colour}?")
    return QA("kind", asked[rng.integers(2)], thing.kind)


def _colour(scene: Scene, rng: np.random.Generator) -> QA | None:
    kinds = [thing.kind for thing in scene.things]
    thing = _pick(rng, [t for t in scene.things if kinds.count(t.kind) == 1])
    if thing is None:
        return None
    asked = (f"What colour is the {thing.kind}?", f"What is the colour of the {thing.kind}?")
    return QA("colour", asked[rng.integers(2)], thing.colour)


def _count(scene: Scene, rng: np.random.Generator) -> QA:
    choice = rng.integers(4)
    if choice == 0:
        return QA("count", "How many objects are there?", str(len(scene.things)))
    if choice == 1:
        noun, kinds = (("digits", DIGITS), ("shapes", SHAPES))[rng.integers(2)]
        return QA("count", f"How many {noun} are there?", str(sum(t.kind in kinds for t in scene.things)))
    colour = _pick(rng, [t.colour for t in scene.things]) if choice == 2 else _pick(rng, list(COLOURS))
    return QA("count", f"How many {colour} objects are there?", str(sum(t.colour == colour for t in scene.things)))


def _existence(scene: Scene, rng: np.random.Generator) -> QA:
    """Yes and no equally often; half of the absent ones mix the kind and the colour of two objects that are there."""
    labels = [thing.label for thing in scene.things]
    if rng.random() < 0.5:
        label = _pick(rng, labels)
    else:
        mixed = [f"{a.colour} {b.kind}" for a, b in permutations(scene.things, 2)]
        absent = [label for label in mixed if label not in labels]
        if rng.random() < 0.5 or not absent:
            absent = [f"{c} {k}" for c in COLOURS for k in KINDS if f"{c} {k}" not in labels]
        label = _pick(rng, absent)
    return QA("existence", f"Is there {article(label)} in the image?", "yes" if label in labels else "no")


def _relation(scene: Scene, rng: np.random.Generator) -> QA | None:
    pairs = list(permutations(scene.things, 2))
    rng.shuffle(pairs)
    wanted = bool(rng.integers(2))
    for a, b in pairs:
        for which in rng.permutation(RELATIONS):
            if relation(scene, a, b, which) is wanted:
                question = f"Is the {a.label} {which} the {b.label}?"
                return QA("relation", question, "yes" if wanted else "no")
    return None
