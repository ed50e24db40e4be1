"""Captions are true: every object is named once, its place and its relations are where the mask has them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from playground import text, world

PLACE = r"(?: (at the (?:top|bottom)(?: left| right)?|on the (?:left|right)|in the middle))?"
NAMED = rf"(an?) ({'|'.join(world.COLOURS)}) ({'|'.join(world.KINDS)}){PLACE}"


@pytest.fixture(scope="module")
def captions(scenes, oracle):
    rng = np.random.default_rng(4)
    return [(scene, oracle.look(scene), text.caption(scene, rng)) for _ in range(4) for scene in scenes]


def test_captions_name_every_object_once(captions):
    for _, seen, caption in captions:
        named = re.findall(NAMED, caption)
        assert sorted((c, k) for _, c, k, _ in named) == sorted((t.colour, t.kind) for t in seen), caption
        assert all((a == "an") == (c == "orange") for a, c, _, _ in named), caption


def test_captions_say_the_right_number_and_order(captions):
    counted = 0
    for _, seen, caption in captions:
        number = re.match(r"there are (\d) objects: ", caption)
        counted += bool(number)
        assert number is None or int(number[1]) == len(seen)
        named = [(c, k) for _, c, k, _ in re.findall(NAMED, caption)]
        if not re.search("left of|above|below", caption):
            x = [next(t.x for t in seen if (t.colour, t.kind) == name) for name in named]
            assert x == sorted(x), f"not from left to right: {caption}"
    assert 0.15 < counted / len(captions) < 0.25, "one style in five"


def test_places_are_true(captions):
    """A word for a side is only said of an object in that third or so of the padded square, and always there."""
    said = Counter()
    for _, seen, caption in captions:
        for _, colour, kind, place in re.findall(NAMED, caption):
            (thing,) = [t for t in seen if (t.colour, t.kind) == (colour, kind)]
            if not place:
                continue
            said[place] += 1
            for low, high, value in (("left", "right", thing.x), ("top", "bottom", thing.y)):
                words = {word for word in (low, high) if word in place.split()}
                assert words == ({low} if value < 0.38 else {high} if value > 0.62 else set()), (caption, thing)
    assert len(said) == 9, said


@pytest.mark.parametrize(
    ("centre", "words"),
    [
        ((20, 20), "at the top left"),
        ((50, 20), "at the top"),
        ((80, 20), "at the top right"),
        ((20, 50), "on the left"),
        ((50, 50), "in the middle"),
        ((80, 50), "on the right"),
        ((20, 80), "at the bottom left"),
        ((50, 80), "at the bottom"),
        ((80, 80), "at the bottom right"),
    ],
)
def test_places_by_hand(centre, words):
    scene = world.Scene(np.zeros((100, 100, 3), np.uint8), np.full((100, 100), -1, np.int8), ())
    x, y = centre
    assert text.place(scene, world.Thing("one", "red", (x - 10, y - 10, x + 10, y + 10))) == words


def test_places_are_of_the_padded_square():
    """In a tall image the left edge is not as far left as in a square one."""
    tall = world.Scene(np.zeros((112, 80, 3), np.uint8), np.full((112, 80), -1, np.int8), ())
    assert text.place(tall, world.Thing("one", "red", (22, 46, 42, 66))) == "in the middle"  # x: (32 + 16) / 112 = 0.43


def test_captions_with_a_relation_are_true(captions, oracle):
    related = 0
    for _, seen, caption in captions:
        found = re.match(rf"{NAMED} (left of|above|below) {NAMED}", caption)
        if found:
            parts = found.groups()
            (a,) = [t for t in seen if (t.colour, t.kind) == parts[1:3]]
            (b,) = [t for t in seen if (t.colour, t.kind) == parts[6:8]]
            assert oracle.holds(a, parts[4], b) and oracle.far_apart(a, parts[4], b), (caption, seen)
            related += 1
    assert related > 0.1 * len(captions)


def test_joined():
    assert text.joined(["a"]) == "a"
    assert text.joined(["a", "b"]) == "a and b"
    assert text.joined(["a", "b", "c"]) == "a, b and c"
