"""Data that are spoiled: values that are not finite, files that are other ones under the same names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from llava_pat.data.dataset import LlavaDataset
from tests.training.world import World

_RECORDS = 12  # of the training set; the held-out set has five


def poison(monkeypatch: pytest.MonkeyPatch, *positions: int, factor: float = float("inf")) -> None:
    """The pixels of these training samples are multiplied: infinity gives infinite values and NaN."""
    intact = LlavaDataset.__getitem__

    def broken(self: LlavaDataset, position: int):
        sample = intact(self, position)
        if position in positions and len(self) == _RECORDS:
            sample["pixel_values"] = [pixels * factor for pixels in sample["pixel_values"]]
        return sample

    monkeypatch.setattr(LlavaDataset, "__getitem__", broken)


def copy_data(world: World, folder: Path) -> Path:
    """Records, regions and images that may be spoiled; `data_flags` names them."""
    shutil.copytree(world.folder / "images", folder / "images")
    for name in ("train.json", "regions.jsonl", "val.json", "regions_val.jsonl"):
        shutil.copy(world.folder / name, folder)
    return folder


def data_flags(own: Path, **more: object) -> dict[str, object]:
    """For World.argv."""
    return {
        "data_path": own / "train.json", "regions_path": own / "regions.jsonl", "eval_data_path": own / "val.json",
        "eval_regions_path": own / "regions_val.jsonl", "image_folder": own / "images",
    } | more  # fmt: skip


def another_caption(own: Path) -> None:
    records = json.loads((own / "train.json").read_text())
    records[3]["conversations"][1]["value"] += " today"
    (own / "train.json").write_text(json.dumps(records))


def another_order(own: Path) -> None:
    (own / "train.json").write_text(json.dumps(json.loads((own / "train.json").read_text())[::-1]))


def one_record_less(own: Path) -> None:
    (own / "train.json").write_text(json.dumps(json.loads((own / "train.json").read_text())[:-1]))


def another_region(own: Path) -> None:
    text = (own / "regions.jsonl").read_text()
    (own / "regions.jsonl").write_text(text.replace("red", "blue", 1) if "red" in text else text.replace("blue", "red"))


def another_image(own: Path) -> None:
    """Of the same size in pixels."""
    _overpaint(own / "images" / "train-3.png")


def another_held_out_image(own: Path) -> None:
    """Of the same size in pixels."""
    _overpaint(own / "images" / "val-0.png")


CHANGES = {
    another_caption: "training", another_order: "training", one_record_less: "training", another_region: "training",
    another_image: "training", another_held_out_image: "held-out",
}  # fmt: skip
"""Each changes a folder of `copy_data`; which data are then not those that a run began with."""


def _overpaint(file: Path) -> None:
    with Image.open(file) as image:
        Image.new("RGB", image.size).save(file)
