"""The rows that the playground's Llama learns from: conversations about scenes as text, quizzes, drills, captions.

Rows are conversations in LLaVA's v1 template (a scene as text, then questions of every type in a random order), plain
text (scene, caption, newline, again and again: the shape of stage 1's `plain` template, with a scene where the image
will stand), drills (a scene, then look-ups in it, one after another, without a question around them), orderings (where
each object is, and the objects from one side to the other) and quizzes (a scene, then as many questions of one type as
it allows). Answers carry the loss; other tokens count a twentieth, enough to be a language model of them. A step's rows
are of one kind, so that little is padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from playground import text, world
from playground.vocabulary import V1_SYSTEM

MAX_TOKENS = 304
BACKGROUND_WEIGHT = 0.05  # of the tokens that are not answers
Schedule = dict[float, dict[str, int]]
PRACTICE = {
    "drill": 1,
    "ordering": 1,
    "reg": 1,
    "rec": 2,
    "conversation": 2,
    "plain": 2,
    "quiz": 3,
    "relation": 4,
    "count": 4,
}
SCHEDULE: Schedule = {
    0.12: {"drill": 8, "ordering": 2, "relation": 3, "count": 2, "reg": 2, "rec": 3},
    0.538: PRACTICE,
    0.85: {"questions": 6, "colour": 2, "count": 3, "relation": 1, "rec": 1, "reg": 1, "conversation": 4, "plain": 2},
    1.00: {"questions": 4, "count": 2, "ordering": 1, "conversation": 10, "plain": 3},
}
"""Until this share of the first phase: how many steps in 20 have rows of each kind."""
POLISH: Schedule = {1.00: {"short": 8, "count": 2, "conversation": 7, "plain": 3}}
"""The same for the second phase: what was still wrong after the first were counts with a request for a short answer."""
QUIZ_TYPES = ("count", "existence", "relation", "rec", "reg")
QUIZZES = ("quiz", "questions", "short", "relation", "count", "colour", "rec", "reg")  # `quiz` has their meanings
FEW_THINGS = 0.08  # until this share of the first phase, scenes of two or three objects
ROWS = {"drill": 2.0, "ordering": 2.0, "conversation": 1.0, "plain": 1.0, **dict.fromkeys(QUIZZES, 1.0)}
"""Rows of a step, times the batch size, by kind: drills are short."""
QUIZ_QUESTIONS = 12  # at most, in a row


@dataclass
class Document:
    """Text, and which parts of it are answers: (type, start, end) in characters."""

    text: str = ""
    answers: list[tuple[str, int, int]] = field(default_factory=list)

    def say(self, words: str) -> None:
        self.text += words

    def answer(self, kind: str, words: str) -> None:
        self.answers.append((kind, len(self.text), len(self.text) + len(words)))
        self.text += words


def conversation(scene: world.Scene, rng: np.random.Generator, system: bool = True) -> Document:
    """The scene as text, then a question of every type, boxes both ways and a caption, shuffled."""
    asked = text.questions(scene, rng)
    order = rng.permutation(len(scene.things))
    asked += [text.rec(scene, scene.things[i], rng) for i in order[:2]]
    asked += [text.reg(scene, scene.things[order[-1]]), text.describe(scene, rng)]
    rng.shuffle(asked)
    document = Document((V1_SYSTEM + " ") if system else "")
    hint = rng.random() < 0.3
    for index, qa in enumerate(asked):
        scene_text = f"Scene: {text.scene_as_text(scene, rng)}\n" if index == 0 else ""
        short = hint and qa.type in text.QUESTION_TYPES
        hint = hint and not short  # once in a conversation, as in LLaVA's data
        document.say(f"USER: {scene_text}{qa.question}{chr(10) + text.SHORT_ANSWER if short else ''} ASSISTANT: ")
        document.answer(qa.type, qa.answer + "</s>")
    return document


def plain(seed: int, split: str, index: int, rng: np.random.Generator) -> Document:
    """Three scenes with a caption each, in stage 1's shape."""
    document = Document()
    for offset in range(3):
        scene = world.scene(seed + 1, split, 3 * index + offset)
        document.say(text.scene_as_text(scene, rng) + " ")
        document.answer("plain", text.caption(scene, rng) + "\n")
    return document


def drill(scene: world.Scene, rng: np.random.Generator) -> Document:
    """The scene, then look-ups: label to box, box to label, kind to colour, colour to kind."""
    boxes = [(thing.label, text.write_box(scene, thing.box)) for thing in scene.things]
    back = [(box, label) for label, box in boxes if rng.random() < 0.5]
    return ask_once(Document(text.scene_as_text(scene, rng)), _word_facts(scene) + boxes + back, rng)


def _word_facts(scene: world.Scene) -> list[tuple[str, str]]:
    kinds, colours = [t.kind for t in scene.things], [t.colour for t in scene.things]
    facts = [(f"{t.kind} is", t.colour) for t in scene.things if kinds.count(t.kind) == 1]
    return facts + [(f"{t.colour} is", t.kind) for t in scene.things if colours.count(t.colour) == 1]


def ask_once(document: Document, facts: list[tuple[str, str]], rng: np.random.Generator) -> Document:
    """Each fact once, shuffled: an answer that stands in the row already would be copied, not looked up."""
    for index in rng.permutation(len(facts)):
        document.say(f" {facts[index][0]} ")
        document.answer("drill", f"{facts[index][1]};")
    return document


def ordering(scene: world.Scene, rng: np.random.Generator) -> Document:
    """The scene, then where each object is, in words, and the objects in a row from one side to the other."""
    facts = [(thing.label, text.place(scene, thing)) for thing in scene.things]
    for axis, sides in enumerate((("left", "right"), ("top", "bottom"))):
        side = int(rng.integers(2))
        row = sorted(scene.things, key=lambda thing: thing.centre[axis], reverse=bool(side))
        facts.append((f"from the {sides[side]}:", ", ".join(thing.label for thing in row)))
    return ask_once(Document(text.scene_as_text(scene, rng)), facts, rng)


def quiz(scene: world.Scene, rng: np.random.Generator, kind: str = "quiz") -> Document:
    """The scene as text, then questions of one type, none of which answers another.

    `kind` is the type, or "quiz" (drawn, now and then all), "questions" (all, every other time with LLaVA's request for
    a short answer behind the first) or "short" (all, with it behind every other question).
    """
    only = None if kind in ("questions", "short") else kind
    if kind == "quiz":
        only = (*QUIZ_TYPES, None)[rng.integers(len(QUIZ_TYPES) + 1)]
    asked: dict[frozenset[str] | str, text.QA] = {}
    if only in ("rec", "reg"):
        things = [scene.things[i] for i in rng.permutation(len(scene.things))]
        asked = {t.label: text.rec(scene, t, rng) if only == "rec" else text.reg(scene, t) for t in things}
    else:
        drawn = [text.questions(scene, rng) for _ in range(2 * QUIZ_QUESTIONS)]
        for qa in (qa for questions in drawn for qa in questions if only in (None, qa.type)):
            if len(asked) < QUIZ_QUESTIONS:
                asked.setdefault(_subject(qa), qa)
    if not asked:  # no two objects far enough apart for a relation, or no kind that only one object is of
        asked = {qa.question: qa for qa in text.questions(scene, rng)}
    document = Document()
    hint = kind == "questions" and rng.random() < 0.5
    for qa in asked.values():
        scene_text = f"Scene: {text.scene_as_text(scene, rng)}\n" if not document.text else ""
        document.say(f"USER: {scene_text}{qa.question}{chr(10) + text.SHORT_ANSWER if hint else ''} ASSISTANT: ")
        hint = kind == "short" and rng.random() < 0.5
        document.answer(qa.type, qa.answer + "</s>")
    return document


def _subject(qa: text.QA) -> frozenset[str] | str:
    """Questions of one subject answer each other: a relation's is its pair of objects and the axis."""
    if qa.type != "relation":
        return qa.question
    words = qa.question.removesuffix("?").replace(" of ", " ").split()  # is the red three left the blue star
    axis = "across" if words[4] in ("left", "right") else "along"
    return frozenset((" ".join(words[2:4]), " ".join(words[-2:]), axis))


def row_kind(seed: int, step: int, progress: float, schedule: Schedule) -> str:
    """The kind of the rows of a step; `progress` is the share of the phase that is over."""
    shares = next(shares for until, shares in schedule.items() if progress <= until)
    rng = np.random.default_rng([seed, step, 4])
    return str(rng.choice([kind for kind, steps in shares.items() for _ in range(steps)]))


def batch(seed: int, step: int, progress: float, schedule: Schedule, batch_size: int) -> tuple[str, list[Document]]:
    """The rows of a step, counted over all phases, and their kind. No scene comes twice."""
    kind = row_kind(seed, step, progress, schedule)
    few = schedule is SCHEDULE and progress < FEW_THINGS
    first, rows = 3 * step * batch_size, int(ROWS[kind] * batch_size)
    return kind, [document(seed, "train", first + i, kind, few) for i in range(rows)]


def document(seed: int, split: str, index: int, kind: str, few: bool = False) -> Document:
    """Row `index` of a kind (one of ROWS); `few`: of a scene of two or three objects."""
    rng = np.random.default_rng([seed, world.SPLITS[split], index, 2])
    if kind == "plain":
        return plain(seed, split, index, rng)
    scene = world.scene(seed, split, index, int(rng.integers(2, 4)) if few else None)
    if kind == "conversation":
        return conversation(scene, rng, system=bool(rng.integers(2)))
    if kind in QUIZZES:
        return quiz(scene, rng, kind)
    return {"drill": drill, "ordering": ordering}[kind](scene, rng)


def encode(tokenizer, documents: list[Document]) -> tuple[Tensor, Tensor, list[list[tuple[str, int, int]]]]:
    """ids [B, T], weights [B, T] (of predicting that token), and each answer's (type, first, last + 1) in tokens."""
    ids, weights, spans = [], [], []
    for one in documents:
        encoded = tokenizer(one.text, return_offsets_mapping=True, truncation=True, max_length=MAX_TOKENS)
        ends = np.array([end for _, end in encoded.offset_mapping])
        row = torch.full((len(ends),), BACKGROUND_WEIGHT)
        row[0] = 0
        found = []
        for kind, start, end in one.answers:
            # a token belongs to the part of the text in which it ends (a leading space belongs to its word)
            first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, end, side="right")
            row[first:last] = 1
            if end <= ends[-1]:  # not cut off
                found.append((kind, int(first), int(last)))
        ids.append(torch.tensor(encoded.input_ids))
        weights.append(row)
        spans.append(found)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(weights, batch_first=True), spans
