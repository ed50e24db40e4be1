"""Eight drawn images with captions and regions, and two checkpoints of LLaVA's tiny base models to measure on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_pat.models.checkpoint import save_projector
from llava_pat.models.projectors import build_projector

WRITTEN = Path(__file__).parents[2] / "assets" / "llava_written"
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220)}
KINDS = ("square", "circle", "ring")


@dataclass(frozen=True)
class Scene:
    """Folders and files: images, {train,val}.json, regions_{train,val}.jsonl, vocabulary.json, checkpoints one, two."""

    folder: Path

    @property
    def checkpoints(self) -> list[str]:
        return [str(self.folder / name) for name in ("one", "two")]

    def argv(self, *words: object, **flags: object) -> list[str]:
        """A command line over both checkpoints, or over those given; flags override, True stands alone."""
        files = {
            "data_path": self.folder / "val.json",
            "image_folder": self.folder / "images",
            "regions_path": self.folder / "regions_val.jsonl",
            "vocabulary_path": self.folder / "vocabulary.json",
            "fit_data_path": self.folder / "train.json",
            "fit_image_folder": self.folder / "images",
            "fit_regions_path": self.folder / "regions_train.jsonl",
            "batch_size": 3,
            "pictures": 2,
            "device": "cpu",
            "no_report": True,
        }
        settings = {name: value for name, value in (files | flags).items() if value is not None}
        pairs = [f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items()]
        return [*map(str, words or self.checkpoints), *pairs]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    for number, name in enumerate(("one", "two")):
        stage1_folder(folder / name, seed=number)
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 8)):
        records, lines = zip(*(draw(folder / "images", f"{split}-{i}", i, rng) for i in range(count)), strict=True)
        (folder / f"{split}.json").write_text(json.dumps(records))
        kept = [line for i, line in enumerate(lines) if i != 4]  # an image without annotations
        (folder / f"regions_{split}.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n")
    (folder / "vocabulary.json").write_text(json.dumps({"kind": list(KINDS), "colour": list(COLOURS)}))
    return Scene(folder)


@pytest.fixture
def make_stage1():
    return stage1_folder


def stage1_folder(folder: Path, seed: int) -> None:
    """LLaVA's stage-1 folder with another projector, its base models by absolute paths."""
    shutil.copytree(WRITTEN / "out-llava-pt", folder)
    (folder / "mm_projector.bin").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"_name_or_path": str(WRITTEN / "llm"), "mm_vision_tower": str(WRITTEN / "clip")}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(10 + seed)
    save_projector(build_projector("mlp2x_gelu", 64, 128), folder)


def draw(folder: Path, name: str, number: int, rng: np.random.Generator) -> tuple[dict, dict]:
    """An image with one to three coloured boxes; its record and its line of the regions file."""
    height, width = [(112, 112), (90, 150), (140, 100)][number % 3]
    pixels = rng.integers(100, 160, (height, width, 3)).astype(np.uint8)
    labels, regions = [], []
    for _ in range(1 + number % 3):
        colour, kind = list(COLOURS)[rng.integers(3)], KINDS[rng.integers(3)]
        x, y, side = int(rng.integers(10, width - 60)), int(rng.integers(5, height - 50)), int(rng.integers(24, 45))
        pixels[y : y + side, x : x + side] = COLOURS[colour]
        labels.append(f"{colour} {kind}")
        regions.append({"label": labels[-1], "bbox": [x, y, side, side]})
    Image.fromarray(pixels).save(folder / f"{name}.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": " and ".join(labels)}]
    record = {"id": name, "image": f"{name}.png", "conversations": turns}
    return record, {"id": name, "image": f"{name}.png", "width": width, "height": height, "regions": regions}
