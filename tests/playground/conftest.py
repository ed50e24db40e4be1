"""Scenes that the playground's tests share, and an oracle that reads a scene from its instance mask alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from playground import generate, world


@dataclass(frozen=True)
class Seen:
    """An object as the oracle knows it: x and y are its box's centre on the padded square, 0-1, from the mask."""

    colour: str
    kind: str
    x: float
    y: float


def look(scene: world.Scene) -> list[Seen]:
    height, width = scene.instances.shape
    side = max(height, width)
    left, top = (side - width) / 2, (side - height) / 2  # all sizes are even: nothing to round
    seen = []
    for index, thing in enumerate(scene.things):
        rows, columns = np.nonzero(scene.instances == index)
        x, y = (columns.min() + columns.max() + 1) / 2 + left, (rows.min() + rows.max() + 1) / 2 + top
        seen.append(Seen(thing.colour, thing.kind, x / side, y / side))
    return seen


def holds(a: Seen, relation: str, b: Seen) -> bool:
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation]


def far_apart(a: Seen, relation: str, b: Seen) -> bool:
    """Centres at least 8 % of the padded square apart, as `text.MARGIN` promises."""
    gap = abs(a.x - b.x) if relation in ("left of", "right of") else abs(a.y - b.y)
    return gap >= 0.08 - 1e-9


def meant_by(phrase: str, seen: list[Seen]) -> list[int]:
    """Which objects a referring phrase fits."""
    words = re.fullmatch(r"the (\w+)(?: (\w+))??(?: on the (left|right))?", phrase)
    assert words, phrase
    first, second, side = words.groups()
    found = []
    for index, thing in enumerate(seen):
        if first in world.COLOURS:
            fits = thing.colour == first and second in (thing.kind, "object")
        else:
            fits = thing.kind == first and second is None
        if fits:
            found.append(index)
    if side:
        assert len(found) == 2, f"{phrase!r} is about one of two, and there are {len(found)}"
        found = [(min if side == "left" else max)(found, key=lambda index: seen[index].x)]
    return found


@pytest.fixture(scope="session")
def scenes() -> list[world.Scene]:
    return [world.scene(3, "val", index) for index in range(300)]


@pytest.fixture(scope="session")
def oracle():
    """The functions above, for test modules (which cannot import one another)."""

    class Oracle:
        look = staticmethod(look)
        holds = staticmethod(holds)
        far_apart = staticmethod(far_apart)
        meant_by = staticmethod(meant_by)

    return Oracle


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """The folder of a small world: seed 5, 60 training, 12 validation and 7 test scenes."""
    out = tmp_path_factory.mktemp("playground") / "data"
    sizes = ["--train", "60", "--val", "12", "--test", "7"]
    generate.main(["--out", str(out), *sizes, "--seed", "5", "--workers", "1"])
    return out
