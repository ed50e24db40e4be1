"""Scenes of the playground: what is in them, and how they are drawn.

A scene is a canvas of 80 to 112 pixels a side with two to five objects on a textured background. An object is a real
handwritten digit (scikit-learn's `load_digits`, 8 x 8 grey levels) or a geometric shape, in one of eight colours. No two
objects of a scene agree in both kind and colour, so "the red three" is always a unique reference; sharing one of the two
is common (about 40 % of the objects), so both words of a reference must be understood.

Masks are exact: `Scene.instances` holds, for each pixel, the index of the object that is visible there.

Everything follows from the seed: scene `i` of a split is the same whatever is drawn before it, in any number of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
KINDS = DIGITS + SHAPES
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (135, 45, 165),
    "orange": (245, 130, 30),
    "cyan": (50, 200, 215),
    "pink": (250, 130, 190),
}
SPLITS = {"train": 0, "val": 1, "test": 2}  # part of the seed; `val` and `test` also have glyphs of their own
SIDE = 80  # shortest edge of every canvas, and the tower's input
LONG_SIDES = (80, 80, 80, 80, 96, 96, 112, 112)  # half of the scenes are square
GLYPH_RESOLUTION = 64
MAX_OVERLAP = 0.08  # of the smaller box: a little occlusion, never a hidden object


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `box` is (x1, y1, x2, y2) in canvas pixels, tight around its visible pixels."""

    kind: str
    colour: str
    box: tuple[int, int, int, int]

    @property
    def label(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """`pixels` [h, w, 3] uint8; `instances` [h, w] int8, -1 for background, else the index into `things`."""

    pixels: np.ndarray
    instances: np.ndarray
    things: tuple[Thing, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@lru_cache(maxsize=None)
def glyphs(split: str) -> dict[str, np.ndarray]:
    """Handwritten digits by word, [n, 64, 64] uint8 opacity. No two splits share a glyph.

    Every fifth is held out; of these the first, third, ... are `val`'s, the second, fourth, ... `test`'s.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    places = np.arange(len(digits.target))
    held_out = places % 5 == 4
    chosen = {"train": ~held_out, "val": held_out & (places // 5 % 2 == 0), "test": held_out & (places // 5 % 2 == 1)}
    chosen = chosen[split]
    by_word = {}
    for number, word in enumerate(DIGITS):
        small = digits.images[chosen & (digits.target == number)]
        by_word[word] = np.stack([_enlarge(glyph) for glyph in small])
    return by_word


def _enlarge(glyph: np.ndarray) -> np.ndarray:
    """[8, 8] grey levels 0-16 -> [64, 64] opacity 0-255: upsampled first, then made crisp, so strokes keep smooth edges."""
    grey = Image.fromarray((glyph * 15.9).astype(np.uint8)).resize((GLYPH_RESOLUTION,) * 2, Image.Resampling.BICUBIC)
    return np.clip((np.asarray(grey, np.float32) - 70) * 3, 0, 255).astype(np.uint8)


@lru_cache(maxsize=None)
def shape(kind: str) -> np.ndarray:
    """Opacity [64, 64] uint8 of a geometric shape, drawn four times larger and reduced, so that edges are smooth."""
    side = GLYPH_RESOLUTION * 4
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    low, high, middle = side * 0.06, side * 0.94, side / 2
    if kind == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif kind == "ring":
        draw.ellipse((low, low, high, high), fill=255)
        draw.ellipse((side * 0.28, side * 0.28, side * 0.72, side * 0.72), fill=0)
    elif kind == "square":
        draw.rectangle((side * 0.1, side * 0.1, side * 0.9, side * 0.9), fill=255)
    elif kind == "triangle":
        draw.polygon([(middle, low), (high, side * 0.88), (low, side * 0.88)], fill=255)
    elif kind == "cross":
        draw.rectangle((side * 0.36, low, side * 0.64, high), fill=255)
        draw.rectangle((low, side * 0.36, high, side * 0.64), fill=255)
    elif kind == "star":
        points = []
        for corner in range(10):
            radius = (0.48 if corner % 2 == 0 else 0.2) * side
            angle = math.pi * corner / 5 - math.pi / 2
            points.append((middle + radius * math.cos(angle), middle + radius * math.sin(angle)))
        draw.polygon(points, fill=255)
    else:
        raise ValueError(f"no shape is called {kind!r}; there are {', '.join(SHAPES)}")
    return np.asarray(image.resize((GLYPH_RESOLUTION,) * 2, Image.Resampling.BOX))


@lru_cache(maxsize=None)
def textures() -> np.ndarray:
    """48 grey textures [48, 160, 160] float32 around 0: smooth noise, stripes, checks and grain."""
    rng = np.random.default_rng(2505_17316)
    y, x = np.mgrid[0:160, 0:160].astype(np.float32)
    made = []
    for index in range(48):
        if index % 3 == 0:
            coarse = rng.normal(size=(rng.integers(4, 16),) * 2).astype(np.float32)
            made.append(np.asarray(Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC)))
        elif index % 3 == 1:
            angle, period = rng.uniform(0, math.pi), rng.uniform(6, 30)
            made.append(np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period))
        else:
            cell = int(rng.integers(5, 16))
            made.append((((x // cell) + (y // cell)) % 2 * 2 - 1) + rng.normal(size=x.shape) * 0.5)
    return np.stack(made).astype(np.float32)


def scene(seed: int, split: str, index: int, things: int | None = None) -> Scene:
    """Scene `index` of a split. `things` fixes the number of objects; by default two to five, evenly."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    width, height = SIDE, int(LONG_SIDES[rng.integers(len(LONG_SIDES))])
    if rng.random() < 0.5:
        width, height = height, width
    wanted = things if things is not None else int(rng.integers(2, 6))
    pixels = _background(rng, height, width)
    instances = np.full((height, width), -1, np.int8)
    drawn: list[tuple[str, str]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for kind, colour in _cast(rng, wanted):
        side = int(rng.integers(20, 35 if wanted <= 3 else 28))
        place = _free_place(rng, width, height, side, boxes)
        if place is None:
            continue  # a crowded canvas: fewer objects, rather than hidden ones
        opacity = _opacity(rng, split, kind, side)
        _paint(rng, pixels, instances, opacity, place, COLOURS[colour], len(drawn))
        drawn.append((kind, colour))
        boxes.append((place[0], place[1], place[0] + side, place[1] + side))
    found = tuple(Thing(kind, colour, _tight(instances == i)) for i, (kind, colour) in enumerate(drawn))
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), instances, found)


def _cast(rng: np.random.Generator, wanted: int) -> list[tuple[str, str]]:
    """Distinct (kind, colour) pairs, digits as often as shapes."""
    colours, cast = list(COLOURS), []
    while len(cast) < wanted:
        kinds = DIGITS if rng.random() < 0.5 else SHAPES
        pair = (kinds[rng.integers(len(kinds))], colours[rng.integers(len(colours))])
        if pair not in cast:
            cast.append(pair)
    return cast


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    texture = textures()[rng.integers(48)]
    top, left = rng.integers(160 - height + 1), rng.integers(160 - width + 1)
    base = rng.uniform(25, 235) + rng.uniform(-12, 12, size=3)
    pattern = texture[top : top + height, left : left + width, None] * rng.uniform(4, 22)
    grain = rng.normal(size=(height, width, 1)).astype(np.float32) * rng.uniform(1, 6)
    return (base + pattern + grain).astype(np.float32)


def _free_place(rng, width: int, height: int, side: int, boxes: list) -> tuple[int, int] | None:
    for _ in range(60):
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        overlaps = (
            max(0, min(x + side, box[2]) - max(x, box[0]))
            * max(0, min(y + side, box[3]) - max(y, box[1]))
            / min(side * side, (box[2] - box[0]) ** 2)
            for box in boxes
        )
        if all(overlap <= MAX_OVERLAP for overlap in overlaps):
            return x, y
    return None


def _opacity(rng: np.random.Generator, split: str, kind: str, side: int) -> np.ndarray:
    """Opacity [side, side] in 0-1 of an object, turned a little."""
    if kind in DIGITS:
        choices = glyphs(split)[kind]
        large, turn = choices[rng.integers(len(choices))], rng.uniform(-12, 12)
    else:
        large, turn = shape(kind), rng.uniform(-15, 15)
    image = Image.fromarray(large).rotate(turn, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def _paint(rng, pixels, instances, opacity, place, colour, index: int) -> None:
    (x, y), side = place, opacity.shape[0]
    tint = np.asarray(colour, np.float32) + rng.uniform(-18, 18, size=3).astype(np.float32)
    window = pixels[y : y + side, x : x + side]
    alpha = opacity[..., None]
    window += alpha * (tint + rng.normal(size=(side, side, 1)).astype(np.float32) * 4 - window)
    instances[y : y + side, x : x + side][opacity > 0.5] = index


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
