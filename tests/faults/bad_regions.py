"""Lines of regions files with something wrong in them, by one random.Random (as bad_records.py)."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from tests.faults.bad_records import LONG, junk
from tests.faults.small_data import SIZES

_HUGE = (1e9, -1e9, 1e300, 2**31, 10**400, 429496729.7, -0.5)


def good_line(rng: random.Random, image: str) -> dict[str, Any]:
    height, width = SIZES.get(image, (12, 18))
    regions = [_good_region(rng, height, width) for _ in range(rng.randint(1, 3))]
    return {"id": image, "image": image, "width": width, "height": height, "regions": regions}


def _good_region(rng: random.Random, height: int, width: int) -> dict[str, Any]:
    x, y = rng.randrange(width - 4), rng.randrange(height - 4)
    w, h = rng.randint(2, width - x), rng.randint(2, height - y)
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    rle = coco.encode(np.asfortranarray(mask))
    return {"label": rng.choice(["red ring", "dog", "café"])} | rng.choice([
        {"bbox": [x, y, w, h]},
        {"segmentation": {"size": [height, width], "counts": rle["counts"].decode()}},
        {"segmentation": [[x, y, x + w, y, x + w, y + h]]},
    ])  # fmt: skip


def _spoil_counts(rng: random.Random, counts: str) -> Any:
    cut = rng.randrange(len(counts) + 1)
    return rng.choice([
        counts[:cut],
        counts[:cut] + chr(rng.randrange(32, 127)) + counts[cut:],
        "".join(chr(rng.randrange(48, 112)) for _ in range(rng.randrange(12))),
        [rng.randint(-5, 600) for _ in range(rng.randrange(6))],
        [2**31, 5], [0.5, 1199.5], "P" * 30, "", "é", junk(rng),
    ])  # fmt: skip


def _spoil_region(rng: random.Random, region: dict[str, Any]) -> None:
    segmentation = region.get("segmentation")
    if rng.random() < 0.2:
        region[rng.choice(["label", "bbox", "segmentation"])] = junk(rng)
    elif isinstance(segmentation, dict) and rng.random() < 0.8:
        segmentation["counts"] = _spoil_counts(rng, segmentation["counts"])
    elif isinstance(segmentation, dict):
        segmentation["size"] = rng.choice([5, None, [1, 2], segmentation["size"][::-1], junk(rng)])
    elif isinstance(segmentation, list):
        segmentation[0][rng.randrange(len(segmentation[0]))] = rng.choice(_HUGE)
        if rng.random() < 0.2:
            segmentation[0].append(1)
    else:
        region["bbox"][rng.randrange(4)] = rng.choice([*_HUGE, junk(rng)])


@dataclass(frozen=True)
class BadLines:
    """The text of a regions file, and how much stands in it."""

    text: str
    lines: int
    faults: int


def bad_lines(rng: random.Random, most: int = 8) -> BadLines:
    """Lines about different images, most of them with a fault."""
    texts, faults = [], 0
    for number in range(rng.randint(1, most)):
        image = [*SIZES, *(f"{place}.png" for place in range(most))][number]
        line: Any = good_line(rng, image)
        if rng.random() < 0.2:
            texts.append(json.dumps(line))
            continue
        faults += 1
        choice = rng.random()
        if choice < 0.6:
            _spoil_region(rng, rng.choice(line["regions"]))
        elif choice < 0.7:
            line[rng.choice(list(line))] = junk(rng)
        elif choice < 0.75:
            line["width"], line["height"] = rng.choice([(10**9, 10**9), (line["height"], line["width"]), (10**30, 1)])
        elif choice < 0.8:
            del line[rng.choice(list(line))]
        elif choice < 0.85:
            line = junk(rng)
        text = json.dumps(line)
        if choice >= 0.85:
            text = rng.choice([
                text.replace('"id"', '"width": 3, "id"'), text[: len(text) // 2], "[" * 100_000,
                text.replace("{", f'{{"score": {LONG}, ', 1), text.replace('"label": "', r'"label": "\ud800'), "{oops",
            ])  # fmt: skip
        texts.append(text)
    return BadLines("\n".join(texts) + "\n", len(texts), faults)
