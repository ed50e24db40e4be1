"""The config.json that LLaVA writes beside a projector: the language model's in transformers 4.37's words, plus mm_*.

Source of the keys: what LLaVA at c121f04 with its own pins left (tests/assets/llava_written/out-llava-pt/config.json).
"""

from __future__ import annotations

from transformers import PretrainedConfig


def stage1_config(
    llm_config: PretrainedConfig,
    *,
    vision_tower: str,
    vision_width: int,
    projector_type: str = "mlp2x_gelu",
    select_layer: int = -2,
    select_feature: str = "patch",
    image_aspect_ratio: str = "square",
    model_max_length: int = 2048,
    padding_side: str = "right",
    mm_projector_lr: float | None = None,
    model_name_or_path: str | None = None,
    dtype: str | None = None,
) -> dict:
    """The dict for config.json of a stage-1 folder.

    vision_tower: better the hub id than an absolute path, which would not be found elsewhere. vision_width: Dv.
    model_name_or_path: kept as `_name_or_path`; by default where llm_config came from.
    dtype: "float32", "bfloat16" ...; by default the one in llm_config.
    Old and new transformers both read the result: it has 4.37's names (rope_theta, rope_scaling, torch_dtype), which
    5.x still accepts, while 4.37 would silently take 10000 for a missing rope_theta.
    """
    config = llm_config.to_diff_dict()
    config["torch_dtype"] = _dtype_name(config.pop("dtype", None) if dtype is None else dtype)
    config.pop("dtype", None)
    _restore_rope_keys(config)
    _drop_what_old_readers_assume(config)
    config.setdefault("tie_word_embeddings", llm_config.tie_word_embeddings)
    config["_name_or_path"] = llm_config.name_or_path if model_name_or_path is None else model_name_or_path
    config["model_type"] = f"llava_{llm_config.model_type}"  # not "llava": that is transformers' own LlavaConfig
    config.update(
        freeze_mm_mlp_adapter=False,
        image_aspect_ratio=image_aspect_ratio,
        mm_hidden_size=vision_width,
        mm_patch_merge_type="flat",
        mm_projector_lr=mm_projector_lr,
        mm_projector_type=projector_type,
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        mm_vision_select_feature=select_feature,
        mm_vision_select_layer=select_layer,
        mm_vision_tower=vision_tower,
        tokenizer_model_max_length=model_max_length,
        tokenizer_padding_side=padding_side,
        tune_mm_mlp_adapter=True,
        use_mm_proj=True,
    )
    return config


def _dtype_name(dtype: object) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _restore_rope_keys(config: dict) -> None:
    """`rope_parameters` of transformers 5 -> `rope_theta` and `rope_scaling` of 4.37."""
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["rope_theta"] = rope["rope_theta"]
    if scaling.get("rope_type", "default") == "default":
        config["rope_scaling"] = None
    elif scaling["rope_type"] in ("linear", "dynamic"):
        # 4.37 takes these two keys only
        config["rope_scaling"] = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    else:
        config["rope_scaling"] = scaling  # unknown to 4.37, whatever it is called


def _drop_what_old_readers_assume(config: dict) -> None:
    """Keys that 4.37 did not write, where they only say what it takes for granted."""
    if "head_dim" in config and config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        del config["head_dim"]
    for key, assumed in (("mlp_bias", False), ("pad_token_id", None)):
        if key in config and config[key] == assumed:
            del config[key]
