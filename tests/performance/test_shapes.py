"""The sizes of named shapes: against the playground's files, and against published counts of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.shapes import SHAPES, Recipe, build_task
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

PLAYGROUND = Path(__file__).resolve().parents[2] / "playground" / "models"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def test_the_playgrounds_shape_is_its_models() -> None:
    shape = SHAPES["playground"]
    llm = json.loads((PLAYGROUND / "llama" / "config.json").read_text())
    tower = json.loads((PLAYGROUND / "clip" / "config.json").read_text())["vision_config"]
    for key in (*SIZES, "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps"):
        assert shape.llm.to_dict()[key] == llm[key], key
    for key in (*SIZES, "image_size", "patch_size"):
        assert shape.tower.to_dict()[key] == tower[key], key


@pytest.mark.parametrize(
    ("name", "llm", "projector"),
    [
        ("llava-v1.5-7b", 6_738_415_616, 1024 * 4096 + 4096 + 4096**2 + 4096),  # Llama 2's published 6.74 B
        ("llava-v1.5-13b", 13_015_864_320, 1024 * 5120 + 5120 + 5120**2 + 5120),
        ("mid", 12 * (4 * 512**2 + 3 * 512 * 1376 + 2 * 512) + 512 + 2 * 32000 * 512, 256 * 512 + 512 + 512**2 + 512),
    ],
)
def test_parameters(name: str, llm: int, projector: int) -> None:
    model = build_task(SHAPES[name], Recipe("projector", torch.bfloat16), "meta").model
    assert sum(p.numel() for p in model.llm.parameters()) == llm
    assert sum(p.numel() for p in model.projector.parameters()) == projector
    assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.projector.parameters()} == {torch.float32}


def test_what_trains_and_in_which_dtype() -> None:
    def dtypes(task, trains: bool) -> set[torch.dtype]:
        return {p.dtype for p in task.parameters() if p.requires_grad == trains}

    stage_2 = build_task(SHAPES["playground"], Recipe("all", torch.bfloat16), "meta")
    assert dtypes(stage_2, True) == {torch.float32} and dtypes(stage_2, False) == {torch.bfloat16}
    deepspeed = build_task(SHAPES["playground"], Recipe("lora", torch.bfloat16, masters=False), "meta")
    assert dtypes(deepspeed, True) == dtypes(deepspeed, False) == {torch.bfloat16}


def test_a_made_up_batch() -> None:
    model = build_task(SHAPES["playground"], Recipe("projector", torch.float32), "meta").model
    batch = made_up_batch(model, 4, 20, ("regions", "patch_words"), uneven=True)
    assert batch["input_ids"].shape == (4, 1 + 100 + 20)
    assert int((batch["input_ids"] == IMAGE_TOKEN_INDEX).sum()) == 4 * 100
    assert (batch["labels"] != IGNORE_INDEX).sum(1).tolist() == [5, 10, 15, 20]
    assert batch["region_coverage"].shape == (32, 100) and batch["patch_words"].shape == (4, 100, 10)
    again = made_up_batch(model, 4, 20, ("regions", "patch_words"), uneven=True)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
