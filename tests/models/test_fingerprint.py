from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from llava_pat.models.fingerprint import text_fingerprint, tower_fingerprint, used_tower_fingerprint
from llava_pat.models.loading import load_vision_tower
from tests.models.clip_folder import write_clip
from tests.models.tower_folders import write_open_clip_tower, write_tower


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path / "clip")


def change(folder, name):
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[0] += 0.5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_copy_is_the_same_and_a_trained_one_is_not(folder, tmp_path):
    before = tower_fingerprint(str(folder)), text_fingerprint(str(folder))
    again = write_clip(tmp_path / "again")
    assert (tower_fingerprint(str(again)), text_fingerprint(str(again))) == before
    change(again, "vision_model.encoder.layers.2.mlp.fc1.bias")
    assert tower_fingerprint(str(again)) != before[0] and text_fingerprint(str(again)) == before[1]
    for name in ("text_model.encoder.layers.1.mlp.fc1.bias", "visual_projection.weight"):
        now = text_fingerprint(str(again))
        change(again, name)
        assert text_fingerprint(str(again)) != now


def test_the_tower_alone_has_the_number_of_the_whole(folder, tmp_path):
    CLIPVisionModel.from_pretrained(folder).save_pretrained(tmp_path / "alone")
    assert tower_fingerprint(str(tmp_path / "alone")) == tower_fingerprint(str(folder))


def test_a_wider_dtype_is_the_same(folder, tmp_path):
    for dtype, name in ((torch.bfloat16, "narrow"), (torch.float32, "wide")):
        there = write_clip(tmp_path / name)
        state = {k: v.to(torch.bfloat16).to(dtype) for k, v in load_file(there / "model.safetensors").items()}
        save_file(state, there / "model.safetensors", metadata={"format": "pt"})
    assert tower_fingerprint(str(tmp_path / "narrow")) == tower_fingerprint(str(tmp_path / "wide"))
    assert tower_fingerprint(str(tmp_path / "narrow")) != tower_fingerprint(str(folder))


def test_settings_count(folder):
    before = tower_fingerprint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert tower_fingerprint(str(folder)) != before


def test_other_towers_have_one(tmp_path):
    """A run may train on DINOv2 with a CLIP's labels."""
    assert len(tower_fingerprint(str(write_tower("dinov2", tmp_path)))) == 64


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2 with swiglu", "dinov2 with registers", "open_clip"])
def test_what_is_used_of_a_tower_counts(kind, tmp_path):
    """Three layers, two of them used; whole, or with the third dropped."""
    if kind == "open_clip":
        pytest.importorskip("open_clip")
        folder = write_open_clip_tower(tmp_path / "tower")
    else:
        folder = write_tower(kind, tmp_path / "tower")
    whole, cut = (load_vision_tower(folder, torch.float32, "sdpa") for _ in range(2))
    cut.drop_layers_above(-2)
    before = used_tower_fingerprint(whole, -2)
    assert used_tower_fingerprint(cut, -2) == used_tower_fingerprint(cut, 2) == before
    assert len({used_tower_fingerprint(whole, layer) for layer in range(4)}) == 4
    with torch.no_grad():
        next(whole.layers[2].parameters()).view(-1)[0] += 0.5
        assert used_tower_fingerprint(whole, -2) == before
        for part in (whole.layers[1], whole.layers[0], whole):
            now = used_tower_fingerprint(whole, -2)
            next(part.parameters()).view(-1)[0] += 0.5
            assert used_tower_fingerprint(whole, -2) != now


def test_settings_of_a_tower_in_memory_count(folder):
    tower = load_vision_tower(folder, torch.float32, "sdpa")
    before = used_tower_fingerprint(tower, -2)
    tower.model.config.hidden_act = "gelu"
    assert used_tower_fingerprint(tower, -2) != before
