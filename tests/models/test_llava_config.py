from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, LlamaConfig, MistralConfig, Qwen2Config

from llava_pat.models.checkpoint import save_config, stage1_config
from llava_pat.models.llava_config import finetune_config, language_config, llava_settings


def test_equals_what_llava_wrote_key_for_key(written, tmp_path):
    expected = json.loads((written / "out-llava-pt" / "config.json").read_text())
    config = stage1_config(
        AutoConfig.from_pretrained(written / "llm"),
        vision_tower="../clip",
        vision_width=64,
        model_name_or_path="../llm",
    )
    save_config(config, tmp_path)
    text = (tmp_path / "config.json").read_text()
    ours = json.loads(text)
    assert ours.pop("transformers_version") and expected.pop("transformers_version") == "4.37.2"
    assert ours == expected
    assert list(json.loads(text)) == sorted(json.loads(text)) and text.endswith("}\n")


def test_settings_of_the_run():
    config = stage1_config(
        LlamaConfig(),
        vision_tower="openai/clip-vit-large-patch14-336",
        vision_width=1024,
        projector_type="linear",
        select_layer=-1,
        select_feature="cls_patch",
        image_aspect_ratio="pad",
        model_max_length=512,
        mm_projector_lr=2e-5,
        dtype="torch.bfloat16",
    )
    assert (config["mm_projector_type"], config["mm_vision_select_layer"], config["mm_vision_select_feature"]) == (
        "linear",
        -1,
        "cls_patch",
    )
    assert (config["image_aspect_ratio"], config["tokenizer_model_max_length"], config["mm_projector_lr"]) == (
        "pad",
        512,
        2e-5,
    )
    assert (config["torch_dtype"], config["mm_hidden_size"], config["tune_mm_mlp_adapter"]) == ("bfloat16", 1024, True)


def test_rope_in_old_words_reads_back_in_new_ones():
    """4.37 reads a missing rope_theta as 10000 without a word (traps.md); 5.x must understand the old names too."""
    linear = {"rope_type": "linear", "factor": 2.0}
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    for scaling, old in ((None, None), (linear, {"type": "linear", "factor": 2.0}), (llama3, llama3)):
        rope = {"rope_theta": 500000.0} | (scaling or {"rope_type": "default"})
        config = stage1_config(LlamaConfig(rope_parameters=dict(rope)), vision_tower="t", vision_width=8)
        assert config["rope_theta"] == 500000.0 and config["rope_scaling"] == old and "rope_parameters" not in config
        again = LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"}).rope_parameters
        assert {key: again[key] for key in rope} == rope


def test_other_families_and_odd_heads():
    config = stage1_config(
        MistralConfig(head_dim=64, hidden_size=96, num_attention_heads=2), vision_tower="t", vision_width=8
    )
    assert config["model_type"] == "llava_mistral" and config["head_dim"] == 64
    assert config["_name_or_path"] == ""


def test_tied_embeddings_are_said(written):
    assert (
        stage1_config(LlamaConfig(tie_word_embeddings=True), vision_tower="t", vision_width=8)["tie_word_embeddings"]
        is True
    )
    assert stage1_config(LlamaConfig(), vision_tower="t", vision_width=8)["tie_word_embeddings"] is False


def test_the_base_config_is_not_touched():
    base = LlamaConfig()
    before = base.to_dict()
    stage1_config(base, vision_tower="t", vision_width=8)
    assert base.to_dict() == before


def test_reads_what_llava_wrote(written):
    language = language_config(written / "llava-v1.5-tiny")
    assert type(language) is LlamaConfig and (language.vocab_size, language.num_hidden_layers) == (520, 2)
    assert language.rope_parameters["rope_theta"] == 10000.0 and "mm_hidden_size" not in language.to_dict()
    settings = llava_settings(written / "llava-v1.5-tiny")
    assert (settings["mm_vision_tower"], settings["mm_projector_type"]) == ("../clip", "mlp2x_gelu")
    assert settings["unfreeze_mm_vision_tower"] is False and "hidden_size" not in settings
    assert llava_settings(written / "llm") is None and type(language_config(written / "llm")) is LlamaConfig


def test_the_released_13b_config(tmp_path):
    """Its keys, as a public fixture quotes them: no rope_theta, model_type "llava"."""
    released = {
        "_name_or_path": "llava-v1.5-13b", "architectures": ["LlavaLlamaForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "hidden_act": "silu",
        "hidden_size": 5120, "image_aspect_ratio": "pad", "initializer_range": 0.02, "intermediate_size": 13824,
        "max_length": 4096, "max_position_embeddings": 4096, "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None, "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava", "num_attention_heads": 40,
        "num_hidden_layers": 40, "num_key_value_heads": 40, "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps":
        1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version":
        "4.31.0", "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False,
        "use_cache": True, "use_mm_proj": True, "vocab_size": 32000,
    }  # fmt: skip
    save_config(released, tmp_path)
    language = language_config(tmp_path)
    assert type(language) is LlamaConfig and (language.hidden_size, language.pad_token_id) == (5120, 0)
    assert language.rope_parameters["rope_theta"] == 10000.0
    assert llava_settings(tmp_path)["image_aspect_ratio"] == "pad"
    save_config({k: v for k, v in released.items() if k not in ("mm_projector_type", "image_aspect_ratio")}, tmp_path)
    settings = llava_settings(tmp_path)
    assert (settings["mm_projector_type"], settings["image_aspect_ratio"]) == ("linear", "square")  # LLaVA's defaults


def test_other_families_by_model_type_and_by_class(tmp_path):
    for config, kind in (
        ({"model_type": "llava_qwen2", "hidden_size": 64}, Qwen2Config),
        ({"model_type": "llava_mistral", "hidden_size": 64}, MistralConfig),
        ({"model_type": "llava", "architectures": ["LlavaMistralForCausalLM"]}, MistralConfig),
    ):
        save_config(config | {"mm_vision_tower": "t"}, tmp_path)
        assert type(language_config(tmp_path)) is kind
    save_config({"model_type": "llava", "vision_config": {}, "text_config": {}}, tmp_path)
    assert llava_settings(tmp_path) is None
    with pytest.raises(ValueError, match="llava-hf's layout.*llava_pat.convert"):
        language_config(tmp_path)


def test_finetune_config_says_what_trained():
    config = finetune_config(
        MistralConfig(), vision_tower="t", vision_width=8, mm_projector_lr=2e-5, freeze_mm_mlp_adapter=True,
        unfreeze_mm_vision_tower=True,
    )  # fmt: skip
    assert (config["model_type"], config["architectures"]) == ("llava_mistral", ["LlavaMistralForCausalLM"])
    assert (config["freeze_mm_mlp_adapter"], config["tune_mm_mlp_adapter"]) == (True, False)
    assert (config["unfreeze_mm_vision_tower"], config["mm_projector_lr"]) == (True, 2e-5)
    assert config["image_aspect_ratio"] == "pad"
