"""Labels of the playground, `colour kind`, as two numbers of every pixel; 0 is the background."""

from __future__ import annotations

import numpy as np

from playground import world

KIND_NAMES = ("background", *world.KINDS)
COLOUR_NAMES = ("background", *world.COLOURS)
LABELS = tuple(f"{colour} {kind}" for colour in world.COLOURS for kind in world.KINDS)


def read_label(label: str) -> tuple[int, int] | None:
    """(kind, colour) as indices into the names above; None for anything but "colour kind"."""
    colour, _, kind = label.partition(" ")
    if kind not in world.KINDS or colour not in world.COLOURS:
        return None
    return KIND_NAMES.index(kind), COLOUR_NAMES.index(colour)


def pixel_targets(scene: world.Scene) -> np.ndarray:
    """uint8 [2, h, w]: the kind and the colour that are visible at every pixel."""
    indices = [read_label(thing.label) for thing in scene.things]
    table = np.array([*indices, (0, 0)], np.uint8)  # instance -1, the background, is the last row
    return np.ascontiguousarray(table[scene.instances].transpose(2, 0, 1))
