"""A data set of a few images, whole and otherwise, and a tokenizer of 520 pieces: what bad files are read against."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from transformers import PreTrainedTokenizerBase

from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import Pad
from llava_pat.data.records import Records
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.types import ImageRegions

LLM = Path(__file__).parents[1] / "assets" / "llava_written" / "llm"
SIDE, PATCH = 28, 14
PATCHES = (SIDE // PATCH) ** 2
GEOMETRY = Pad(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = {"whole.png": (30, 40), "wide.png": (20, 50)}  # height, width


@dataclass(frozen=True)
class SmallData:
    """Where the images are, and what reads their records."""

    images: Path
    tokenizer: PreTrainedTokenizerBase

    def dataset(self, records: Records, regions: dict[str, ImageRegions] | None = None) -> LlavaDataset:
        return LlavaDataset(
            records, self.images, get_template("v1"), self.tokenizer, GEOMETRY, PATCH, regions, model_max_length=200
        )


def small_data(folder: Path) -> SmallData:
    """Images of every kind that tests/faults/bad_records.py names; `secret.png` lies beside the folder."""
    images = folder / "images"
    images.mkdir()
    for name, (height, width) in SIZES.items():
        Image.effect_noise((width, height), 60).convert("RGB").save(images / name)
    Image.new("RGB", (9, 9), "red").save(folder / "secret.png")
    Image.new("RGB", (31, 17), "blue").save(images / "other.png")
    content = (images / "whole.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    (images / "text.png").write_text("no picture")
    (images / "out.png").symlink_to(folder / "secret.png")
    (images / "loop.png").symlink_to("loop.png")
    os.mkfifo(images / "pipe.png")
    return SmallData(images, load_tokenizer(LLM))
