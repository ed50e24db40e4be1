"""Stage 2 with SigLIP and DINOv2 towers that train: the finished folder, going on from it, its llava-hf form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.convert.command import main as convert
from llava_pat.models.from_folder import load_model
from llava_pat.training.stages import finetune
from tests.models.tower_folders import names_on_the_hub, write_open_clip_tower, write_tower

TOWER = "model.vision_tower.vision_tower."


@pytest.mark.parametrize("kind", ["whole siglip", "dinov2"])
def test_a_tower_that_trains(world, tmp_path: Path, kind: str) -> None:
    tower = write_tower(kind, tmp_path / "tower")
    flags = {
        "vision_tower": tower, "unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 1e-2, "max_steps": 2,
        "save_strategy": "no", "warmup_steps": 0, "image_aspect_ratio": "pad",
    }  # fmt: skip
    first, second = tmp_path / "llava-v1.5-first", tmp_path / "llava-v1.5-second"
    finetune(world.finetune_argv(first, **flags))
    stored = load_file(first / "model.safetensors")
    names = {name.removeprefix(TOWER) for name in stored if name.startswith(TOWER)}
    assert names == names_on_the_hub(kind, tower)
    base = load_file(tower / "model.safetensors")
    moved = {name for name in names if not torch.equal(stored[TOWER + name], base[name])}
    key = "layers.0" if "siglip" in kind else "layer.0"
    assert any(key in name for name in moved) and not any("layernorm" in name for name in moved)
    assert load_model(first, dtype=torch.float32).config["unfreeze_mm_vision_tower"] is True

    # frozen from here, it still is the folder's own, not the one that config.json names
    flags |= {"unfreeze_mm_vision_tower": None, "mm_vision_tower_lr": None, "model_name_or_path": first,
              "vision_tower": None, "pretrain_mm_mlp_adapter": None}  # fmt: skip
    finetune(world.finetune_argv(second, **flags))
    again = load_file(second / "model.safetensors")
    assert all(torch.equal(again[TOWER + name], stored[TOWER + name]) for name in names)
    assert json.loads((second / "config.json").read_text())["mm_vision_tower"] == str(tower)
    assert convert([str(second), str(tmp_path / "hf")]) == 0


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip_torch is an extra")
def test_an_open_clip_tower_that_trains(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By a name that starts with open_clip:, which is a folder's all the same."""
    tower, out = write_open_clip_tower(tmp_path / "tower"), tmp_path / "llava-v1.5-run"
    flags = {"vision_tower": f"open_clip:{tower}", "unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 1e-2,
             "max_steps": 2, "save_steps": 1, "warmup_steps": 0}  # fmt: skip
    finetune(world.finetune_argv(out, **flags))
    stored = load_file(out / "model.safetensors")
    for file in (*out.glob("*.safetensors"), out / "mm_projector.bin", out / "metrics.json"):
        file.unlink()
    assert finetune(world.finetune_argv(out, **flags))["steps"] == 2  # read back from checkpoint-2
    again = load_file(out / "model.safetensors")
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)
    base = load_file(tower / "open_clip_model.safetensors")
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    assert not torch.equal(stored[TOWER + name], base[f"visual.{name}"])
    state = load_model(out, dtype=torch.float32).model.tower.model.state_dict()
    assert all(torch.equal(state[key], stored[TOWER + key]) for key in state)
    assert convert([str(out), str(tmp_path / "hf")]) == 2
    assert "no class for open_clip's towers" in capsys.readouterr().err
