"""The language model's rows: what they say is true, which tokens are answers, and which kinds come when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import encode as encode_turns
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.types import IGNORE_INDEX, Turn
from playground import rows, text, world

FOLDER = Path(rows.__file__).parent / "models" / "llama"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def documents():
    return [rows.document(0, "train", index, kind) for kind in rows.ROWS for index in range(6)]


@pytest.fixture(scope="module")
def encoded(tokenizer, documents):
    return rows.encode(tokenizer, documents)


ENDS = {"plain": "\n", "drill": ";"}  # every other answer ends with </s>


def test_answers_are_where_the_text_says(documents):
    kinds = set()
    for one in documents:
        assert one.answers
        kinds |= {kind for kind, _, _ in one.answers}
        for kind, start, end in one.answers:
            assert one.text[start:end].endswith(ENDS.get(kind, "</s>"))
            assert one.text[:start].endswith(" " if kind in ENDS else " ASSISTANT: ")
    assert kinds == {*text.QUESTION_TYPES, "rec", "reg", "caption", "plain", "drill"}


def test_spans_decode_to_exactly_the_answers(tokenizer, documents, encoded):
    ids, _, spans = encoded
    for row, one in enumerate(documents):
        assert len(spans[row]) >= min(3, len(one.answers))
        for (kind, first, last), (said, start, end) in zip(spans[row], one.answers, strict=False):
            assert kind == said
            # sentencepiece joins the space before a word to the word: it is the first token's, and no one's answer
            assert tokenizer.decode(ids[row, first:last]).strip(" ") == one.text[start:end].strip(" "), one.text
            before = tokenizer.decode(ids[row, 1:first])  # shows the dummy prefix behind </s> as a space
            assert one.text[:start].split() == before.replace("</s> ", "</s>").split()


def lookup(scene: world.Scene, asked: str) -> list[str]:
    """What a drill's question can mean: a box is asked by its label, a label by its box, one word by the other."""
    boxes = {text.write_box(scene, thing.box): thing.label for thing in scene.things}
    if asked in boxes:
        return [boxes[asked]]
    if asked.endswith(" is"):
        word = asked.removesuffix(" is")
        return [t.colour if word == t.kind else t.kind for t in scene.things if word in (t.kind, t.colour)]
    return [box for box, label in boxes.items() if label == asked]


def test_drills_are_true():
    shapes = set()
    for index in range(60):
        scene = world.scene(0, "train", index)
        one = rows.drill(scene, np.random.default_rng(index))
        position = len(text.scene_as_text(scene, np.random.default_rng(0)))  # every order is as long
        assert one.text[:position].endswith("].")
        for kind, start, end in one.answers:
            asked, answer = one.text[position:start].strip(), one.text[start:end].removesuffix(";")
            assert kind == "drill" and lookup(scene, asked) == [answer], (asked, answer)
            shapes.add((asked[0] == "[", answer[0] == "[", asked.endswith(" is")))
            position = end
        assert position == len(one.text)
    assert len(shapes) == 3, "label to box, box to label, word to word"


def reading(scene: world.Scene, question: str) -> str | None:
    """The answer to one of the hard questions, by reading the question; None for the other types."""
    labels = {thing.label: thing for thing in scene.things}
    words = question.removesuffix("?").split()
    if words[:2] == ["Is", "there"]:
        return "yes" if " ".join(words[3:5]) in labels else "no"
    if words[0] == "Is":
        one, two = labels[" ".join(words[2:4])], labels[" ".join(words[-2:])]
        return "yes" if text.relation(scene, one, two, " ".join(words[4:-3])) else "no"
    if words[:2] != ["How", "many"]:
        return None
    named = {"digits": world.DIGITS, "shapes": world.SHAPES, "objects": world.KINDS}.get(words[2], world.KINDS)
    wanted = [t for t in scene.things if t.kind in named and (words[3] == "objects") <= (t.colour == words[2])]
    return str(len(wanted))


def test_quizzes_are_true_and_no_question_answers_another():
    types = []
    for index in range(60):
        scene = world.scene(0, "train", index)
        one = rows.quiz(scene, np.random.default_rng(index))
        asked, position = [], 0
        for _, start, end in one.answers:
            question = one.text[position:start].split("\n")[-1].removeprefix("USER: ").removesuffix(" ASSISTANT: ")
            answer = one.text[start:end].removesuffix("</s>")
            assert reading(scene, question) in (None, answer), (question, answer)
            asked.append(question)
            position = end
        assert len(asked) == len(set(asked)) <= rows.QUIZ_QUESTIONS
        pairs = []
        for words in (question.removesuffix("?").split() for question in asked if question.startswith("Is the ")):
            pairs.append((frozenset([" ".join(words[2:4]), " ".join(words[-2:])]), "of" in words))
        assert len(pairs) == len(set(pairs)), asked
        types.append(frozenset(kind for kind, _, _ in one.answers))
    assert {frozenset([kind]) for kind in rows.QUIZ_TYPES} < set(types) and max(map(len, types)) > 3


def place_words(scene: world.Scene, asked: str) -> str:
    """What an ordering's question means: a label's place, or the labels from one side."""
    if not asked.startswith("from"):
        return next(text.place(scene, thing) for thing in scene.things if thing.label == asked)
    side = asked.removeprefix("from the ").removesuffix(":")
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    return ", ".join(t.label for t in sorted(scene.things, key=lambda t: sign * (t.box[axis] + t.box[axis + 2])))


def test_orderings_are_true():
    sides = set()
    for index in range(60):
        scene = world.scene(0, "train", index)
        if any(len({t.centre[axis] for t in scene.things}) < len(scene.things) for axis in (0, 1)):
            continue  # two of the same middle: either order is right
        one = rows.ordering(scene, np.random.default_rng(index))
        position = one.text.index("].") + 2
        assert len(one.answers) == len(scene.things) + 2
        for _, start, end in one.answers:
            asked = one.text[position:start].strip()
            assert one.text[start:end] == place_words(scene, asked) + ";"
            sides |= {asked} if asked.startswith("from") else set()
            position = end
    assert len(sides) == 4


@pytest.mark.parametrize("only", ["count", "relation", "rec", "reg"])
def test_quizzes_of_one_type(only):
    for index in range(12):
        one = rows.document(0, "train", index, only)
        assert {kind for kind, _, _ in one.answers} == {only}


def test_a_quiz_without_a_relation_to_ask_asks_other_things():
    thing = world.Thing("three", "red", (10, 10, 40, 40))
    near = world.Thing("star", "blue", (11, 11, 41, 41))
    scene = world.Scene(np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.int8), (thing, near))
    one = rows.quiz(scene, np.random.default_rng(0), "relation")
    assert {kind for kind, _, _ in one.answers} == {"kind", "colour", "count", "existence"}


def test_questions_are_of_every_type_and_half_of_the_rows_ask_for_a_short_answer():
    made = [rows.document(0, "train", index, "questions") for index in range(30)]
    assert {kind for one in made for kind, _, _ in one.answers} == set(text.QUESTION_TYPES)
    hints = [one.text.count(text.SHORT_ANSWER) for one in made]
    assert set(hints) == {0, 1} and 6 < sum(hints) < 24
    for one in (one for one in made if text.SHORT_ANSWER in one.text):
        assert text.SHORT_ANSWER in one.text[: one.answers[0][1]], "behind the first question"
    short = [rows.document(0, "train", index, "short") for index in range(10)]
    asked, hinted = sum(len(one.answers) for one in short), sum(one.text.count(text.SHORT_ANSWER) for one in short)
    assert 0.3 * asked < hinted < 0.65 * asked
    assert all(rows.document(0, "train", index, "count").text.count(text.SHORT_ANSWER) == 0 for index in range(9))


def test_the_schedules():
    """Small scenes and no conversations at first; every kind later on, and conversations the most at the end."""
    for schedule in (rows.SCHEDULE, rows.POLISH):
        ends = list(schedule)
        assert ends == sorted(ends) and ends[-1] == 1
        assert all(sum(steps.values()) == 20 for steps in schedule.values())
    assert set().union(*rows.SCHEDULE.values(), *rows.POLISH.values()) == set(rows.ROWS)
    drawn = [[rows.row_kind(0, step, progress, rows.SCHEDULE) for step in range(400)] for progress in (0.0, 1.0)]
    assert "conversation" not in drawn[0] and drawn[0].count("drill") > 120
    assert drawn[1].count("conversation") > 150
    seen: set[str] = set()
    small, all_sizes = {2, 3}, {2, 3, 4, 5}
    for step, progress, schedule, sizes in (
        *((0, 0.0, rows.SCHEDULE, small), (4, 0.2, rows.SCHEDULE, all_sizes), (5, 0.25, rows.SCHEDULE, all_sizes)),
        (40, 0.0, rows.POLISH, all_sizes),
    ):
        kind, made = rows.batch(0, step, progress, schedule, 12)
        assert len(made) == 12 * rows.ROWS[kind]
        scenes = {one.text[: one.answers[0][1]].split("].")[0].split("Scene: ")[-1] for one in made}
        assert {scene.count("[") for scene in scenes} == sizes and not seen & scenes
        seen |= scenes


def test_weights(documents, encoded):
    """One on answers (their ends included), a twentieth elsewhere, nothing on BOS and padding."""
    ids, weights, spans = encoded
    assert ids.shape == weights.shape and ids.shape[1] <= rows.MAX_TOKENS
    for row in range(len(documents)):
        expected = torch.full((ids.shape[1],), rows.BACKGROUND_WEIGHT)
        expected[0] = 0
        length = int((ids[row] != 0).nonzero().max()) + 1  # pad is 0, which no text has
        expected[length:] = 0
        for _, first, last in spans[row]:
            expected[first:last] = 1
        whole = spans[row][-1][2]  # a cut-off answer has weight but no span; it is not checked here
        assert torch.equal(weights[row, :whole], expected[:whole])
        assert not weights[row, length:].any()


def test_a_cut_off_answer_is_no_answer(tokenizer):
    one = rows.Document("red " * rows.MAX_TOKENS)
    one.answer("kind", "three</s>")
    short = rows.Document("USER: what? ASSISTANT: ")
    short.answer("kind", "three</s>")
    ids, _, spans = rows.encode(tokenizer, [one, short])
    assert ids.shape == (2, rows.MAX_TOKENS)
    assert spans[0] == []
    ((kind, first, last),) = spans[1]
    assert kind == "kind" and ids[1, first:last].tolist() == [*tokenizer.encode("three", add_special_tokens=False), 2]


def test_conversations_are_in_llavas_template():
    """The same ids and the same supervised tokens as llava_pat's `v1`, so that stage 2 looks familiar to the model."""
    tokenizer = load_tokenizer(FOLDER)
    scene = world.scene(0, "train", 3)
    one = rows.conversation(scene, np.random.default_rng(0), system=True)
    body = one.text.split("USER: ", 1)[1].removesuffix("</s>")
    turns = []
    for part in body.split("</s>USER: "):
        question, answer = part.split(" ASSISTANT: ")
        turns += [Turn("human", question), Turn("gpt", answer)]
    wanted = encode_turns(turns, get_template("v1"), tokenizer)
    ids, _, spans = rows.encode(tokenizer, [one])
    assert ids[0].tolist() == wanted.input_ids[: rows.MAX_TOKENS]
    learned = {i for i, label in enumerate(wanted.labels) if label != IGNORE_INDEX}
    for _, first, last in spans[0]:
        assert set(range(first, last)) <= learned


def test_a_hint_comes_once_and_only_for_questions():
    hinted = 0
    for index in range(40):
        one = rows.conversation(world.scene(0, "train", index), np.random.default_rng(index))
        assert one.text.count(text.SHORT_ANSWER) <= 1
        assert one.text.count("Scene: ") == 1
        hinted += text.SHORT_ANSWER in one.text
    assert 4 <= hinted <= 22, "three in ten"


def test_documents_follow_from_their_index():
    for kind in rows.ROWS:
        one = rows.document(0, "train", 7, kind)
        rows.document(0, "val", 2, kind)
        assert one == rows.document(0, "train", 7, kind)
        assert one != rows.document(0, "val", 7, kind) and one != rows.document(1, "train", 7, kind)


def test_plain_rows_have_stage_1s_shape():
    one = rows.plain(0, "train", 5, np.random.default_rng(0))
    lines = one.text.split("\n")
    assert len(lines) == 4 and lines[-1] == "" and len(one.answers) == 3
    for line, (_, start, end) in zip(lines, one.answers, strict=False):
        scene, caption = line[: -(end - start)], one.text[start : end - 1]
        assert line.endswith(caption) and scene.count("[") == scene.count("]") >= 2
