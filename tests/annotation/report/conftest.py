"""A small world whose numbers can be found by hand: 32 x 32 pixels, patches of 8, so 4 x 4 patches an image.

a.png  32 x 32   dog: its two upper left patches, score 0.5; cat: a box of 8 x 2 in the first of them, a quarter of it
b.png  64 x 32   crop: its middle 32 columns. sky: a box over columns 0-15, cut away, score 0.9;
                 dog: a box of 8 x 8 that is the crop's first patch, score 0.7
c.png            a record, but no line
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation.samples import rle, save_image, write_json

CAPTIONS = {"a.png": "two dogs and a bird", "b.png": "a brown dog under the sky", "c.png": "a cat"}
GRID = ("--image_size", "32", "--patch_size", "8")


def lines() -> list[dict[str, Any]]:
    dog = np.zeros((32, 32), np.uint8)
    dog[:8, :16] = 1
    return [
        {"id": "1", "image": "a.png", "width": 32, "height": 32, "regions": [
            {"label": "dog", "segmentation": rle(dog), "bbox": [0, 0, 16, 8], "score": 0.5},
            {"label": "cat", "bbox": [0, 0, 8, 2]}]},
        {"id": "2", "image": "b.png", "width": 64, "height": 32, "regions": [
            {"label": "sky", "bbox": [0, 0, 16, 32], "score": 0.9},
            {"label": "dog", "bbox": [16, 0, 8, 8], "score": 0.7}]},
    ]  # fmt: skip


def write_lines(file: Path, content: list[Any]) -> Path:
    """A string is written as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in content)
    file.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return file


def write_records(file: Path, captions: dict[str, str]) -> Path:
    return write_json(file, [
        {"id": name, "image": name, "conversations": [
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]}
        for name, caption in captions.items()
    ])  # fmt: skip


def write_run(folder: Path, finished: bool = True, images: int = 3) -> Path:
    """The same world as a run of two shards, the second of which has no line; where its images are is run.json's."""
    out = folder / "run"
    write_lines(out / "regions" / "part-00000.jsonl", lines())
    write_lines(out / "regions" / "part-00001.jsonl", [])
    write_json(out / "left_out" / "part-00000.json", {"images": [], "counts": {"nearly the whole image": 2}})
    write_json(out / "left_out" / "part-00001.json", {
        "images": [{"id": "3", "image": "c.png", "reason": "no such image file", "where": "records.json: record 2"}],
        "counts": {"nearly the whole image": 1, "smaller than min_area": 5},
    })  # fmt: skip
    # begun, not finished: its regions are not there
    write_json(out / "left_out" / "part-00002.json", {"images": [
        {"id": "4", "image": "d.png", "reason": "not counted", "where": ""}], "counts": {}})  # fmt: skip
    (out / "annotation.yaml").write_text("tagger: {kind: caption, engine: rules}\nlabels: {max_labels: 40}\n")
    records, images_at = folder / "records.json", folder / "images"
    write_json(out / "run.json", {"records": str(records), "image_folder": str(images_at), "images": images,
                                  "limit": None})  # fmt: skip
    if finished:
        write_json(out / "summary.json", {})
    return out


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """regions.jsonl, records.json, images/."""
    write_lines(tmp_path / "regions.jsonl", lines())
    write_records(tmp_path / "records.json", CAPTIONS)
    save_image(tmp_path / "images" / "a.png", (32, 32))
    save_image(tmp_path / "images" / "b.png", (32, 64))
    return tmp_path
