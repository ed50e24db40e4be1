from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from llava_pat.models.loading import load_image_processor, load_language_model, load_vision_tower
from llava_pat.models.vlm import VisionLanguageModel

FP32 = torch.float32


def copied(source, tmp_path, **config):
    """A writable copy of a model folder, with some keys of its config.json replaced."""
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_from_pretrained(written, caplog):
    with caplog.at_level(logging.INFO, logger="llava_pat.models.vlm"):
        model = VisionLanguageModel.from_pretrained(str(written / "clip"), str(written / "llm"))
    assert (model.num_patches, model.patch_size, model.vision_width, model.hidden_size, model.vocab_size) == (
        64,
        14,
        64,
        128,
        520,
    )
    assert len(model.tower.model.encoder.layers) == 2  # of 3: nothing reads the last
    stored = load_file(written / "clip" / "model.safetensors")
    assert torch.equal(
        model.tower.model.encoder.layers[1].mlp.fc2.weight, stored["vision_model.encoder.layers.1.mlp.fc2.weight"]
    )
    assert "64 patches of 14 pixels" in caplog.text


def test_dtype_is_the_frozen_parts(written):
    model = VisionLanguageModel.from_pretrained(
        str(written / "clip"), str(written / "llm"), "linear", dtype=torch.bfloat16
    )
    assert {p.dtype for part in (model.tower, model.llm) for p in part.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.projector.parameters()} == {FP32}


def test_tower_from_a_whole_clip_model(tmp_path, capfd):
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 9,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            projection_dim=8,
        )
    )
    clip.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = load_vision_tower(str(tmp_path), FP32, "sdpa").model
    assert "UNEXPECTED" not in "".join(capfd.readouterr())  # the text half is no news
    expected = {
        name.removeprefix("vision_model."): t
        for name, t in clip.state_dict().items()
        if name.startswith("vision_model.")
    }
    assert tower.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())


def test_another_architecture_is_no_tower(written):
    with pytest.raises(ValueError, match=r"llm.*model_type 'llama', expected one of 'clip', 'clip_vision_model'"):
        load_vision_tower(str(written / "llm"), FP32, "sdpa")


@pytest.mark.parametrize("part", ["clip", "llm"])
def test_missing_weights_are_not_made_up(written, tmp_path, part):
    folder = copied(written / part, tmp_path)
    name = {"clip": "vision_model.encoder.layers.0.mlp.fc1.bias", "llm": "model.layers.1.mlp.up_proj.weight"}[part]
    rewrite(folder, lambda tensors: tensors.pop(name))
    load = {"clip": load_vision_tower, "llm": load_language_model}[part]
    with pytest.raises(
        ValueError, match=f"{part}: the weights do not fit.*1 missing .*{name.removeprefix('vision_model.')}"
    ):
        load(str(folder), FP32, "sdpa")


def test_a_surplus_tower_layer_is_not_dropped_in_silence(written, tmp_path):
    folder = copied(written / "clip", tmp_path, num_hidden_layers=2)
    with pytest.raises(ValueError, match="16 unexpected.*encoder.layers.2"):
        load_vision_tower(str(folder), FP32, "sdpa")


def test_grids_that_differ(written, tmp_path):
    folder = copied(written / "clip", tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["crop_size"] = {"height": 224, "width": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="makes 224 x 224, but .* takes 112 x 112"):
        VisionLanguageModel.from_pretrained(str(folder), str(written / "llm"))


def test_a_patch_that_does_not_tile_the_image(written, tmp_path):
    folder = copied(written / "clip", tmp_path, patch_size=15)
    with pytest.raises(ValueError, match="112 is not a multiple of patch size 15"):
        load_vision_tower(str(folder), FP32, "sdpa")


def test_image_processor_needs_no_torchvision(written):
    processor = load_image_processor(str(written / "clip"), 112)
    assert type(processor).__name__ == "CLIPImageProcessorPil" and processor.crop_size["height"] == 112
