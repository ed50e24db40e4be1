"""What tokens ought to know while the playground's Llama learns: linear read-outs of its hidden states, thrown away
afterwards.

An answer says little about what was missing on the way to it: "no" does not tell which of two objects was not found. So
labels are asked for their object's box, boxes for their label, the second label of a relation for how far the two
objects' middles are apart, the end of a scene for its counts, and a question's last word for the answer, each at the
depth at which the layers above need it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from playground import world
from playground.rows import MAX_TOKENS, Document, encode

WEIGHT = 0.5  # of all lessons together, beside the language model's loss
NUMBERS_WEIGHT, COUNTS_WEIGHT = 4.0, 3.0
SHORT = 0.03  # states are made so short where numbers are read, or each of Adam's steps would make the numbers jump
RIDGE = 100.0
MOST = 6  # counts are 0 to 5
BOX = re.compile(r"\[([^\]]*)\]")
LABEL = re.compile(rf"\b(?:{'|'.join(world.COLOURS)}) (?:{'|'.join(world.KINDS)})\b")
ANSWERED = re.compile(r"(?=\?[^?]*? ASSISTANT: (\w+)</s>)")
RELATION = re.compile(r"Is the (\w+ \w+) (?:left of|right of|above|below) the (\w+ \w+)(?=\?)")
COLOURS = list(world.COLOURS)
ANSWERS = ("yes", "no", *map(str, range(MOST)), *world.KINDS, *COLOURS)


@dataclass(frozen=True)
class Lesson:
    """Read after layer `depth`: `numbers` of them, or else one class of each of `classes`."""

    depth: int
    numbers: int = 0
    classes: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.numbers or sum(self.classes)


NAMES = (len(world.KINDS), len(world.COLOURS))
LESSONS = {
    "own label": Lesson(1, classes=NAMES),  # at the end of a box of the scene: whose it is
    "own box": Lesson(1, numbers=4),  # there too: the four numbers
    "label": Lesson(2, classes=NAMES),  # at the end of any other box
    "box": Lesson(2, numbers=4),  # at the end of a label, behind the scene
    "between": Lesson(3, numbers=2),  # at the end of a relation's second label: across and down, from it to the first
    "counts": Lesson(3, classes=(MOST,) * (3 + len(COLOURS))),  # at a scene's end: objects, digits, shapes, each colour
    "answer": Lesson(4, classes=(len(ANSWERS),)),  # at the last word of a question that one word answers
}


def lessons_of(words: str) -> list[tuple[str, int, list[float]]]:
    """What can be asked about a row's text, which has one scene: (lesson, characters up to there, what is right)."""
    end = words.index("].") + 2
    scene = words[:end]
    boxes = [[float(number) for number in found[1].split(", ")] for found in BOX.finditer(scene)]
    labels = LABEL.findall(scene)
    names = [[world.KINDS.index(kind), COLOURS.index(colour)] for colour, kind in (label.split() for label in labels)]
    written = {found[0]: index for index, found in enumerate(BOX.finditer(scene))}
    kinds = [kind for kind, _ in names]
    digits = sum(kind < len(world.DIGITS) for kind in kinds)
    counts = [len(kinds), digits, len(kinds) - digits]
    counts += [sum(colour == each for _, colour in names) for each in range(len(COLOURS))]
    asked = [("counts", end, counts)]
    for found in BOX.finditer(words):
        index = written[found[0]]
        if found.end() <= end:
            asked += [("own label", found.end(), names[index]), ("own box", found.end(), boxes[index])]
        else:
            asked.append(("label", found.end(), names[index]))
    for found in LABEL.finditer(words, end):
        if found[0] in labels:
            asked.append(("box", found.end(), boxes[labels.index(found[0])]))
    for found in ANSWERED.finditer(words, end):
        asked.append(("answer", found.start(), [ANSWERS.index(found[1])]))
    for found in RELATION.finditer(words, end):
        one, two = (boxes[labels.index(found[i])] for i in (1, 2))
        across, down = ((one[i] + one[i + 2] - two[i] - two[i + 2]) / 2 for i in (0, 1))
        asked.append(("between", found.end(), [across, down]))
    return asked


def marked(tokenizer, documents: list[Document]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Lesson -> rows [n], tokens [n] (indices into `encode`'s ids) and what is right [n, numbers or classes]."""
    found: dict[str, tuple[list, list, list]] = {}
    for row, one in enumerate(documents):
        if "plain" in {kind for kind, _, _ in one.answers}:
            continue  # three scenes
        encoded = tokenizer(one.text, return_offsets_mapping=True, truncation=True, max_length=MAX_TOKENS)
        ends = np.array([end for _, end in encoded.offset_mapping])
        for lesson, at, right in lessons_of(one.text):
            if at <= ends[-1]:  # not cut off
                rows, tokens, answers = found.setdefault(lesson, ([], [], []))
                rows.append(row)
                tokens.append(int(np.searchsorted(ends, at)))  # the token in which that character is
                answers.append(right)
    return {name: tuple(torch.tensor(part) for part in parts) for name, parts in found.items()}


class Lessons(torch.nn.Module):
    """A language model with its read-outs."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        width = model.config.hidden_size
        self.read = torch.nn.ModuleDict({name: torch.nn.Linear(width, one.size) for name, one in LESSONS.items()})

    @torch.no_grad()
    def begin(self, tokenizer, documents: list[Document]) -> None:
        """Read-outs of numbers begin at the ridge regression on the model as it is."""
        output = self.model(input_ids=encode(tokenizer, documents)[0], output_hidden_states=True)
        for name, (rows, tokens, right) in marked(tokenizer, documents).items():
            if LESSONS[name].numbers:
                states, wanted = self._states(name, output.hidden_states, rows, tokens), right.float()
                away, middle = states - states.mean(0), wanted.mean(0)
                ridge = RIDGE * SHORT**2 * torch.eye(states.shape[1])
                weight = torch.linalg.solve(away.T @ away + ridge, away.T @ (wanted - middle)).T
                self.read[name].weight.copy_(weight)
                self.read[name].bias.copy_(middle - weight @ states.mean(0))

    def loss(self, hidden: tuple[Tensor, ...], marks: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Weighted sum of the lessons' means.

        `hidden`: [B, T, D] before the first layer and after each; `marks` as `marked` gives them.
        """
        total = hidden[0].new_zeros((), dtype=torch.float32)
        for name, (rows, tokens, right) in marks.items():
            said = self.read[name](self._states(name, hidden, rows, tokens))
            if LESSONS[name].numbers:
                total = total + NUMBERS_WEIGHT * (said - right).abs().mean()
                continue
            parts = said.split(LESSONS[name].classes, dim=1)
            each = [F.cross_entropy(part, right[:, i]) for i, part in enumerate(parts)]
            total = total + (COUNTS_WEIGHT * sum(each) / len(each) if name == "counts" else sum(each))
        return WEIGHT * total

    def _states(self, name: str, hidden: tuple[Tensor, ...], rows: Tensor, tokens: Tensor) -> Tensor:
        """[n, D], of one length."""
        states = F.normalize(hidden[LESSONS[name].depth][rows, tokens].float(), dim=-1) * hidden[0].shape[-1] ** 0.5
        return states * SHORT if LESSONS[name].numbers else states
