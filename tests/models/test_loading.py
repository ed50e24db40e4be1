from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, CLIPConfig, CLIPModel

from llava_pat.models.loading import available_attention, load_image_processor, load_language_model, load_vision_tower
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


@pytest.mark.parametrize(("key", "value"), [("lm_head_multiplier", 0.04), ("hidden_size_per_layer_input", 256)])
def test_models_that_read_ids_where_patches_have_none(written, tmp_path, key, value):
    folder = copied(written / "llm", tmp_path, **{key: value})
    with pytest.raises(ValueError, match=f"config.json has {key}.*patches cannot stand in for words"):
        load_language_model(str(folder), FP32, "sdpa")


def test_more_than_a_language_model(written, tmp_path):
    text = json.loads((written / "llm" / "config.json").read_text())
    folder = copied(written / "llm", tmp_path, model_type="idefics3", text_config=text)
    with pytest.raises(ValueError, match="holds more than a language model"):
        load_language_model(str(folder), FP32, "sdpa")


def test_vicunas_generation_config_can_be_saved(written, tmp_path, caplog):
    """temperature 0.9 and top_p 0.6 with do_sample false: transformers loads it and refuses to save it."""
    folder = copied(written / "llm", tmp_path)
    vicuna = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096}
    vicuna |= {"temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(vicuna))
    with caplog.at_level(logging.INFO, logger="llava_pat.models.loading"):
        llm = load_language_model(str(folder), FP32, "sdpa")
    assert caplog.text.count("temperature 0.9, top_p 0.6") == 1
    llm.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & saved.keys() and saved["eos_token_id"] == 2


def test_a_generation_config_that_samples_is_left_alone(written, tmp_path, caplog):
    folder = copied(written / "llm", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7}))
    with caplog.at_level(logging.INFO, logger="llava_pat.models.loading"):
        llm = load_language_model(str(folder), FP32, "sdpa")
    assert (llm.generation_config.do_sample, llm.generation_config.temperature) == (True, 0.7) and not caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_flash_attention_without_a_gpu(written, caplog):
    llm = load_language_model(str(written / "llm"), FP32, "flash_attention_2")
    assert llm.config._attn_implementation == "sdpa"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "flash_attention_2 was asked for, but there is no GPU; taking sdpa" in caplog.text


def test_flash_attention_that_is_not_installed(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("llava_pat.models.loading.is_flash_attn_2_available", lambda: False)
    assert available_attention("flash_attention_2") == "sdpa" and "flash-attn is not installed" in caplog.text
    monkeypatch.setattr("llava_pat.models.loading.is_flash_attn_2_available", lambda: True)
    assert available_attention("flash_attention_2") == "flash_attention_2"
    assert available_attention("eager") == "eager"


def test_a_quantized_base(written):
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = VisionLanguageModel.from_pretrained(
        str(written / "clip"), str(written / "llm"), llm_dtype=torch.bfloat16, quantization_config=settings
    )
    assert type(model.llm.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    assert model.llm.model.norm.weight.dtype == torch.bfloat16 and model.tower.dtype == FP32
    with pytest.raises(ValueError, match="quantized language model cannot train in full"):
        model.set_trainable(llm=True)
    model.set_trainable(llm=False)


def test_the_whole_tower_for_export(written):
    clip, llm = str(written / "clip"), str(written / "llm")
    whole = VisionLanguageModel.from_pretrained(clip, llm, whole_tower=True)
    assert len(whole.tower.layers) == 3 and len(VisionLanguageModel.from_pretrained(clip, llm).tower.layers) == 2
    stored = load_file(written / "clip" / "model.safetensors")
    assert {f"vision_model.{name}" for name in whole.tower.model.state_dict()} == stored.keys() - {
        "vision_model.embeddings.position_ids"
    }


@pytest.mark.parametrize("kind", ["llava_llama", "llava"])
def test_the_language_model_of_a_llava_folder(written, tmp_path, kind, caplog):
    """LLaVA's own layout holds the projector (and a tower that was trained) beside the language model."""
    folder = copied(written / "llm", tmp_path, model_type=kind, mm_vision_tower="clip", mm_hidden_size=64)
    expected = load_file(folder / "model.safetensors")
    more = {"model.mm_projector.0.weight": torch.zeros(2, 2), "model.image_newline": torch.zeros(2)}
    more["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(2)
    rewrite(folder, lambda tensors: tensors.update(more))
    llm = load_language_model(str(folder), FP32, "sdpa")
    assert type(llm).__name__ == "LlamaForCausalLM" and "unused weights" not in caplog.text
    assert all(torch.equal(llm.get_parameter(name), tensor) for name, tensor in expected.items())


def test_image_processor_needs_no_torchvision(written):
    processor = load_image_processor(str(written / "clip"), 112)
    assert type(processor).__name__ == "CLIPImageProcessorPil" and processor.crop_size["height"] == 112
