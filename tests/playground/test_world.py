"""Scenes: drawn from the seed alone, exact masks, honest splits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from playground import world


def same(a: world.Scene, b: world.Scene) -> bool:
    return a.things == b.things and np.array_equal(a.pixels, b.pixels) and np.array_equal(a.instances, b.instances)


def test_a_scene_follows_from_its_index_whatever_was_drawn_before():
    forwards = [world.scene(1, "train", index) for index in range(12)]
    world.scene(9, "val", 5)
    np.random.seed(4)
    backwards = [world.scene(1, "train", index) for index in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


@pytest.mark.parametrize("other", [(2, "train", 3), (1, "val", 3), (1, "test", 3), (1, "train", 4)])
def test_seed_split_and_index_all_matter(other):
    one, two = world.scene(1, "train", 3), world.scene(*other)
    assert [thing.label for thing in one.things] != [thing.label for thing in two.things], "not the glyphs alone"


def test_splits_share_no_glyph():
    splits = {split: world.glyphs(split) for split in world.SPLITS}
    for word in world.DIGITS:
        train, val, test = ({glyph.tobytes() for glyph in found[word]} for found in splits.values())
        assert train and val and test and not (train & val or train & test or val & test), word
    counts = {split: sum(len(glyphs) for glyphs in found.values()) for split, found in splits.items()}
    assert counts == {"train": 1438, "val": 180, "test": 179}, "every handwritten digit of scikit-learn is used once"
    least = min(len(found[word]) for found in splits.values() for word in world.DIGITS)
    assert least >= 10, "and every digit of a split is written in several ways"


@pytest.mark.parametrize("split", world.SPLITS)
def test_a_split_draws_only_its_own_glyphs(monkeypatch, split):
    asked = []
    original = world.glyphs
    monkeypatch.setattr(world, "glyphs", lambda split: asked.append(split) or original(split))
    for index in range(10):
        world.scene(0, split, index)
    assert set(asked) == {split}


@pytest.fixture(scope="module")
def see_through():
    """Scenes drawn on black and on grey: what changes between the two is what shines through, so opacity is known."""
    original = world._background
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        for index in range(60):
            versions = []
            for level in (0, 200):

                def flat(rng, height, width, level=level):
                    return np.full_like(original(rng, height, width), level)

                patch.setattr(world, "_background", flat)
                versions.append(world.scene(6, "train", index))
            drawn.append(versions)
    return drawn


def test_masks_are_the_painted_pixels(see_through):
    """A pixel belongs to an object exactly where it is more object than background."""
    disputed = total = 0
    for black, grey in see_through:
        assert np.array_equal(black.instances, grey.instances)
        through = (grey.pixels.astype(float) - black.pixels).mean(-1) / 200
        inside = black.instances >= 0
        assert (through[inside] < 0.51).all(), "the mask holds pixels that are mostly background"
        # mostly painted, and no object's: only where two soft edges lie on one another
        disputed += int((~inside & (through < 0.48)).sum())
        total += int(inside.sum())
    assert disputed < 0.002 * total, (disputed, total)


def test_masks_belong_to_the_right_object(see_through):
    """Solid pixels have the colour of the object that the mask says (up to its tint of 18 and the grain)."""
    for black, grey in see_through:
        solid = np.abs(grey.pixels.astype(int) - black.pixels).max(-1) <= 4
        for index, thing in enumerate(black.things):
            pixels = black.pixels[solid & (black.instances == index)]
            assert len(pixels) > 20, thing
            away = np.abs(np.median(pixels, axis=0) - world.COLOURS[thing.colour])
            assert (away <= 18 + 6).all(), (thing, away)


def test_nothing_is_painted_outside_of_things(see_through):
    for black, _ in see_through:
        far = np.ones(black.instances.shape, bool)
        for x0, y0, x1, y1 in (thing.box for thing in black.things):
            far[max(0, y0 - 20) : y1 + 20, max(0, x0 - 20) : x1 + 20] = False
        assert not black.pixels[far].any()


def test_boxes_are_tight(scenes):
    for scene in scenes:
        assert set(np.unique(scene.instances)) <= set(range(-1, len(scene.things)))
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(scene.instances == index)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert all(type(edge) is int for edge in thing.box), "JSON takes ints, not numpy's"


def test_objects_stay_visible(scenes):
    """A little occlusion, never a hidden object: every one keeps pixels enough to be told."""
    smallest = min((scene.instances == index).sum() for scene in scenes for index in range(len(scene.things)))
    assert smallest >= 30, smallest


def test_labels_are_unique_in_a_scene(scenes):
    for scene in scenes:
        labels = [thing.label for thing in scene.things]
        assert len(set(labels)) == len(labels), labels
        assert all(label == f"{t.colour} {t.kind}" for label, t in zip(labels, scene.things, strict=True))


def test_every_word_occurs(scenes):
    kinds = Counter(thing.kind for scene in scenes for thing in scene.things)
    colours = Counter(thing.colour for scene in scenes for thing in scene.things)
    assert set(kinds) == set(world.KINDS) and set(colours) == set(world.COLOURS)
    digits = sum(kinds[word] for word in world.DIGITS) / kinds.total()
    assert 0.4 < digits < 0.6, digits
    assert max(colours.values()) < 2 * min(colours.values()), colours


def test_sharing_a_word_is_common():
    """Objects that share their kind or their colour with another: both words of a label must be understood."""
    sharing = []
    for index in range(500):
        things = world.scene(0, "train", index).things
        for thing in things:
            sharing.append(any(o is not thing and (o.kind == thing.kind or o.colour == thing.colour) for o in things))
    assert 0.35 <= np.mean(sharing) <= 0.45, np.mean(sharing)


def test_sizes(scenes):
    sizes = Counter(scene.size for scene in scenes)
    assert set(sizes) == {(80, 80), (96, 80), (80, 96), (112, 80), (80, 112)}, "square, portrait and landscape"
    assert 0.4 < sizes[80, 80] / len(scenes) < 0.6
    for scene in scenes:
        assert scene.pixels.shape == (*scene.instances.shape, 3) and scene.pixels.dtype == np.uint8
    counts = Counter(len(scene.things) for scene in scenes)
    assert set(counts) == {2, 3, 4, 5}, counts


def test_number_of_things_can_be_asked_for():
    assert all(len(world.scene(0, "train", index, things=1).things) == 1 for index in range(10))


@pytest.mark.parametrize("kind", world.SHAPES)
def test_shapes_are_solid_and_differ(kind):
    opacity = world.shape(kind)
    assert opacity.shape == (64, 64) and opacity.max() == 255 and opacity.min() == 0
    for other in set(world.SHAPES) - {kind}:
        differing = ((opacity > 127) != (world.shape(other) > 127)).mean()
        assert differing > 0.05, (kind, other, differing)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="circle, square"):
        world.shape("hexagon")
    with pytest.raises(KeyError):
        world.scene(0, "dev", 0)
