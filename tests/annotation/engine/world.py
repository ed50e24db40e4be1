"""A world to be annotated: rectangles of pure colours, a detector that finds them, and images that have faults."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava_pat.annotation.stages import Detection, Detections, Detector

COLOURS = {"red box": (255, 0, 0), "green box": (0, 255, 0), "blue box": (0, 0, 255)}
DETECTOR = "tests.annotation.engine.world.ByColour"
SETTINGS = (f"detector={DETECTOR}", "segmenter=boxes", "tagger.engine=rules", "selection.min_area=4")


def write_world(folder: Path, images: int, seed: int = 0) -> tuple[Path, Path]:
    """(records, image folder). Every 7th image is missing, every 11th is no image, every 13th shows nothing."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(images):
        name, shown = f"{number:04d}.png", list(rng.permutation(list(COLOURS))[: rng.integers(1, 4)])
        height, width = rng.integers(24, 48, 2)
        pixels = np.full((height, width, 3), 255, np.uint8)
        for place, label in enumerate(shown if number % 13 else ()):
            pixels[2 + 7 * place : 7 + 7 * place, 3 : int(rng.integers(8, width))] = COLOURS[label]
        if number % 7 == 3:
            pass
        elif number % 11 == 5:
            (folder / "images" / name).write_text("no image")
        else:
            Image.fromarray(pixels).save(folder / "images" / name)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"a {', a '.join(shown)}"}]
        records.append({"id": f"n{number}", "image": name, "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json", folder / "images"


@dataclass(frozen=True)
class ByColourOptions:
    seconds: float = 0.0
    """That a batch takes."""
    fails_on: str = ""
    """A size, WIDTHxHEIGHT, or "all"."""


class ByColour(Detector):
    """Boxes and masks of what has the colour of its name, to the pixel."""

    Options = ByColourOptions
    version = "by colour"

    def __init__(self, options: ByColourOptions, place) -> None:
        self.options, self.batches = options, []

    def detect(self, images, labels):
        time.sleep(self.options.seconds)
        self.batches.append(len(images))
        if any(self.options.fails_on in ("all", f"{image.width}x{image.height}") for image in images):
            raise RuntimeError("out of memory")
        return [self._find(np.asarray(image), wanted) for image, wanted in zip(images, labels, strict=True)]

    def _find(self, pixels, wanted) -> Detections:
        found = Detections()
        for label in wanted:
            mask = (pixels == COLOURS[label]).all(-1) if label in COLOURS else np.zeros(pixels.shape[:2], bool)
            if mask.any():
                ys, xs = np.nonzero(mask)
                box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
                found.found.append(Detection(label, box, 0.9, mask))
        return found


def read_tree(out: Path) -> dict[str, bytes]:
    """Everything that a run leaves, but for hidden files."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
