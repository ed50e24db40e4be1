from __future__ import annotations

import json

from transformers import AutoConfig, LlamaConfig, MistralConfig

from llava_pat.models.checkpoint import save_config, stage1_config


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
