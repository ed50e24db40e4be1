"""What is said about a scene is true: every sentence is taken apart and checked against the mask by an oracle."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from llava_pat.data.geometry import Pad
from playground import text, world


@pytest.fixture(scope="module")
def asked(scenes, oracle):
    """(scene, what the oracle sees, question) of several rounds over all scenes."""
    rng = np.random.default_rng(0)
    return [(s, oracle.look(s), qa) for _ in range(4) for s in scenes for qa in text.questions(s, rng)]


def of_type(asked, kind):
    return [(scene, seen, qa) for scene, seen, qa in asked if qa.type == kind]


def test_every_type_occurs_at_most_once_a_scene(scenes):
    rng = np.random.default_rng(1)
    rounds = [[qa.type for qa in text.questions(scene, rng)] for scene in scenes]
    assert all(len(set(types)) == len(types) for types in rounds)
    for kind in text.QUESTION_TYPES:
        assert sum(kind in types for types in rounds) > 0.7 * len(scenes), kind
    assert len({types[0] for types in rounds}) == len(text.QUESTION_TYPES), "the order varies"


def test_kind(asked):
    for _, seen, qa in of_type(asked, "kind"):
        noun, colour = re.fullmatch(r"(?:What is the|Which (digit|shape) is) (\w+)(?: object)?\?", qa.question).groups()
        found = [thing.kind for thing in seen if thing.colour == colour]
        assert found == [qa.answer], (qa, seen)
        assert noun in (None, "digit" if qa.answer in world.DIGITS else "shape"), qa


def test_colour(asked):
    for _, seen, qa in of_type(asked, "colour"):
        kind = re.fullmatch(r"What colour is the (\w+)\?|What is the colour of the (\w+)\?", qa.question)
        kind = kind[1] or kind[2]
        assert [thing.colour for thing in seen if thing.kind == kind] == [qa.answer], (qa, seen)


def test_count(asked):
    wordings = Counter()
    for _, seen, qa in of_type(asked, "count"):
        what = re.fullmatch(r"How many (\w+)(?: objects)? are there\?", qa.question)[1]
        wordings[what] += 1
        if what == "objects":
            number = len(seen)
        elif what in ("digits", "shapes"):
            number = sum((thing.kind in world.DIGITS) == (what == "digits") for thing in seen)
        else:
            assert what in world.COLOURS
            number = sum(thing.colour == what for thing in seen)
        assert qa.answer == str(number), (qa, seen)
    assert set(wordings) == {"objects", "digits", "shapes", *world.COLOURS}
    answers = Counter(qa.answer for _, _, qa in of_type(asked, "count"))
    assert set("012345") <= set(answers), answers


def test_existence(asked):
    said, tempting = Counter(), 0
    for _, seen, qa in of_type(asked, "existence"):
        a, colour, kind = re.fullmatch(r"Is there (an?) (\w+) (\w+) in the image\?", qa.question).groups()
        assert (a == "an") == (colour == "orange")
        assert qa.answer == ("yes" if any((t.colour, t.kind) == (colour, kind) for t in seen) else "no"), (qa, seen)
        said[qa.answer] += 1
        tempting += qa.answer == "no" and any(t.colour == colour for t in seen) and any(t.kind == kind for t in seen)
    assert 0.45 < said["yes"] / said.total() < 0.55, said
    assert tempting > 0.4 * said["no"], "half of the absent labels mix the words of two objects that are there"


def test_relation(asked, oracle):
    said, words = Counter(), Counter()
    for _, seen, qa in of_type(asked, "relation"):
        asks = r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?"
        parts = re.fullmatch(asks, qa.question).groups()
        (a,) = [t for t in seen if (t.colour, t.kind) == parts[:2]]
        (b,) = [t for t in seen if (t.colour, t.kind) == parts[3:]]
        assert a is not b
        assert oracle.far_apart(a, parts[2], b), f"{qa.question} is too close to tell"
        assert qa.answer == ("yes" if oracle.holds(a, parts[2], b) else "no"), (qa, seen)
        said[qa.answer] += 1
        words[parts[2]] += 1
    assert 0.45 < said["yes"] / said.total() < 0.55, said
    assert min(words.values()) > 0.15 * words.total(), words


def test_relation_is_open_when_centres_are_close():
    def thing(x, y):
        return world.Thing("one", "red", (x, y, x + 10, y + 10))

    scene = world.Scene(np.zeros((80, 100, 3), np.uint8), np.full((80, 100), -1, np.int8), ())
    a = thing(10, 10)
    assert text.relation(scene, a, thing(17, 40), "left of") is None, "7 of 100 pixels"
    assert text.relation(scene, a, thing(18, 40), "left of") is True, "8 of 100 pixels"
    assert text.relation(scene, a, thing(18, 40), "right of") is False
    assert text.relation(scene, a, thing(17, 40), "above") is True
    assert text.relation(scene, a, thing(17, 40), "below") is False


def test_referring_expressions_fit_one_object(scenes, oracle):
    rng = np.random.default_rng(2)
    styles = Counter()
    for scene in scenes:
        seen = oracle.look(scene)
        for index, thing in enumerate(scene.things):
            for _ in range(4):
                phrase = text.referring(scene, thing, rng)
                assert oracle.meant_by(phrase, seen) == [index], (phrase, seen)
                style = "side" if phrase.endswith(("left", "right")) else "object" if "object" in phrase else "words"
                styles[style, len(phrase.split())] += 1
    assert set(styles) == {("words", 2), ("words", 3), ("object", 3), ("side", 5)}, styles


def test_a_side_is_said_only_when_it_can_be_seen(scenes, oracle):
    rng = np.random.default_rng(5)
    sides = 0
    for scene in scenes:
        seen = oracle.look(scene)
        for index, thing in enumerate(scene.things):
            phrase = text.referring(scene, thing, rng)
            if phrase.endswith(("left", "right")):
                (other,) = [t for t in seen if t.kind == thing.kind and t is not seen[index]]
                assert oracle.far_apart(seen[index], "left of", other)
                sides += 1
    assert sides, "none was said, so none was checked"


@pytest.mark.parametrize("size", [80, 336])
def test_boxes_are_llavas(scenes, size):
    """Relative to the padded square: the same numbers as the geometry that moves pixels and masks."""
    pad = Pad(size=size, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    for scene in scenes:
        width, height = scene.size
        for thing in scene.things:
            box = text.square_box(scene, thing.box)
            assert box == pytest.approx(pad.normalized_box(thing.box, height, width), abs=1e-9)
            assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def test_boxes_by_hand():
    tall = world.Scene(np.zeros((112, 80, 3), np.uint8), np.full((112, 80), -1, np.int8), ())
    assert text.square_box(tall, (0, 0, 80, 112)) == (16 / 112, 0.0, 96 / 112, 1.0)
    assert text.write_box(tall, (0, 0, 80, 112)) == "[0.15, 0.00, 0.85, 1.00]"


def test_written_boxes_have_two_decimals(scenes):
    for scene in scenes:
        for thing in scene.things:
            written = text.write_box(scene, thing.box)
            assert re.fullmatch(r"\[(?:[01]\.\d\d, ){3}[01]\.\d\d\]", written), written
            values = [float(value) for value in written[1:-1].split(", ")]
            assert np.allclose(values, text.square_box(scene, thing.box), atol=0.025 + 1e-9)


def test_boxes_both_ways(scenes, oracle):
    rng = np.random.default_rng(3)
    openings = Counter()
    for scene in scenes:
        seen = oracle.look(scene)
        for index, thing in enumerate(scene.things):
            there = text.rec(scene, thing, rng)
            where = re.fullmatch(r"Where is (.*)\?", there.question)
            phrase = where[1] if where else there.question.removeprefix(text.REC_PROMPT)
            openings[bool(where)] += 1
            assert oracle.meant_by(phrase, seen) == [index] and there.answer == text.write_box(scene, thing.box)
            back = text.reg(scene, thing)
            assert back.question == text.REG_PROMPT + there.answer
            assert back.answer == ("an " if thing.colour == "orange" else "a ") + f"{thing.colour} {thing.kind}"
    assert 0.4 < openings[True] / openings.total() < 0.6


def test_scene_as_text_holds_every_object_with_its_box(scenes):
    rng = np.random.default_rng(6)
    orders = set()
    for scene in scenes:
        said = text.scene_as_text(scene, rng)
        assert said.endswith(".")
        parts = said[:-1].split("; ")
        wanted = [f"{thing.colour} {thing.kind} {text.write_box(scene, thing.box)}" for thing in scene.things]
        assert sorted(parts) == sorted(wanted)
        orders.add(wanted.index(parts[0]))
    assert len(orders) > 2, "the order varies"


def test_the_same_generator_says_the_same(scenes):
    said = [[text.questions(s, np.random.default_rng(7)) for s in scenes[:20]] for _ in range(2)]
    assert said[0] == said[1]
