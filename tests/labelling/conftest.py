"""A tiny corpus: seven images of 40 x 32 pixels with captions, regions on five of them, and a made-up CLIP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.clip_folder import write_clip

LABELS = ("red circle", "blue square", "green ring")


@dataclass(frozen=True)
class Corpus:
    folder: Path

    def argv(self, out: Path, **flags: object) -> list[str]:
        """A command line; `flags` override, None takes a flag away, True is a bare switch."""
        settings: dict[str, object] = {
            "data_path": self.folder / "train.json",
            "image_folder": self.folder / "images",
            "vision_tower": self.folder / "clip",
            "regions_path": self.folder / "regions.jsonl",
            "patch_words_path": out,
            "min_count": 1,
            "sign": 1,
            "batch_size": 2,
            "num_workers": 0,
            "device": "cpu",
        } | flags
        words = []
        for name, value in settings.items():
            if value is not None:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    write_clip(folder / "clip")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    records, lines = [], []
    for number in range(7):
        name, label = f"{number}.png", LABELS[number % 3]
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8)).save(folder / "images" / name)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"a {label} above 3 rings"}]
        records.append({"id": str(number), "image": name, "conversations": turns})
        if number < 5:
            region = {"label": label, "bbox": [4 + number, 0, 12, 16]}
            lines.append({"id": str(number), "image": name, "width": 40, "height": 32, "regions": [region]})
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "regions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return Corpus(folder)
