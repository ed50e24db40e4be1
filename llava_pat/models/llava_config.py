"""The config.json that LLaVA writes beside weights: the language model's in transformers 4.37's words, plus mm_*.

Source of the keys: what LLaVA at c121f04 with its own pins left (tests/assets/llava_written/*/config.json), and the
released 13B's (model_type "llava", fewer mm_* keys), which must be readable as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from llava_pat.models.json_file import read_json
from llava_pat.models.unusable import unusable_named

logger = logging.getLogger(__name__)

READABLE_BY_LLAVA = ("llava_llama", "llava_mistral")
"""Model types that LLaVA itself loads (its MPT class aside); another family's folder is for `convert --to hf`."""

_ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "mpt": "LlavaMptForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}
_LLAVA_KEYS = (
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
)
"""LLaVA's keys without the prefix mm_."""


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
    config = in_old_words(llm_config, dtype)
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


def in_old_words(llm_config: PretrainedConfig, dtype: str | None = None) -> dict:
    """A language model's config as transformers 4.37 wrote it, which 5.x reads too."""
    config = llm_config.to_diff_dict()
    config["torch_dtype"] = _dtype_name(config.pop("dtype", None) if dtype is None else dtype)
    config.pop("dtype", None)
    _restore_rope_keys(config)
    _drop_what_old_readers_assume(config)
    config.setdefault("tie_word_embeddings", llm_config.tie_word_embeddings)
    return config


def finetune_config(
    llm_config: PretrainedConfig,
    *,
    vision_tower: str,
    vision_width: int,
    projector_type: str = "mlp2x_gelu",
    select_layer: int = -2,
    select_feature: str = "patch",
    image_aspect_ratio: str = "pad",
    model_max_length: int = 2048,
    padding_side: str = "right",
    mm_projector_lr: float | None = None,
    model_name_or_path: str | None = None,
    dtype: str | None = None,
    tune_mm_mlp_adapter: bool = False,
    freeze_mm_mlp_adapter: bool = False,
    unfreeze_mm_vision_tower: bool = False,
) -> dict:
    """The dict for config.json of a stage-2 folder; as `stage1_config`, with what trained.

    unfreeze_mm_vision_tower: the tower trained, so its weights are in the folder and LLaVA must take them from there
    (it ignores them without this key). `save_llava` writes torch_dtype itself when it casts.
    """
    config = stage1_config(
        llm_config,
        vision_tower=vision_tower,
        vision_width=vision_width,
        projector_type=projector_type,
        select_layer=select_layer,
        select_feature=select_feature,
        image_aspect_ratio=image_aspect_ratio,
        model_max_length=model_max_length,
        padding_side=padding_side,
        mm_projector_lr=mm_projector_lr,
        model_name_or_path=model_name_or_path,
        dtype=dtype,
    )
    config.update(
        architectures=[architecture(llm_config.model_type)],
        freeze_mm_mlp_adapter=freeze_mm_mlp_adapter,
        tune_mm_mlp_adapter=tune_mm_mlp_adapter,
        unfreeze_mm_vision_tower=unfreeze_mm_vision_tower,
    )
    return config


def architecture(family: str) -> str:
    """LLaVA's class name for a language model's model_type."""
    return _ARCHITECTURES.get(family, f"Llava{family.capitalize()}ForCausalLM")


def read_config(name_or_path: str | Path) -> dict:
    """config.json of a folder or hub id, as it is written.

    Raises FileNotFoundError when there is none, ValueError when it is no JSON object.
    """
    if Path(name_or_path).is_dir():
        file = Path(name_or_path) / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{name_or_path} has no config.json, so it is no model folder")
    else:
        found = cached_file(str(name_or_path), "config.json")  # raises OSError, saying what it tried
        file = Path(found)
    return read_json(file)


def is_llava(config: Mapping) -> bool:
    """Whether a config.json is of LLaVA's layout: not a plain language model's, and not llava-hf's."""
    kind = str(config.get("model_type"))
    return (kind == "llava" or kind.startswith("llava_")) and "mm_vision_tower" in config


def is_llava_hf(config: Mapping) -> bool:
    """Whether a config.json is transformers' own LlavaConfig."""
    return config.get("model_type") == "llava" and "vision_config" in config and "mm_vision_tower" not in config


def language_config(name_or_path: str | Path) -> PretrainedConfig:
    """The language model's own config (LlamaConfig, MistralConfig ...) of a plain LLM or of a LLaVA-layout folder.

    Raises ValueError for llava-hf's layout and for a family that transformers does not know.
    """
    config = read_config(name_or_path)
    if is_llava_hf(config):
        raise ValueError(
            f"{name_or_path} is in llava-hf's layout, expected a language model or LLaVA's layout. Convert it: "
            f"python -m llava_pat.convert {name_or_path} OUT --to llava"
        )
    if not is_llava(config):
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            own = "; it brings code of its own (auto_map), which is never run here" if "auto_map" in config else ""
            raise ValueError(f"{name_or_path}: config.json says model_type {kind!r}, which transformers has not{own}")
        with unusable_named(str(name_or_path)):
            return AutoConfig.from_pretrained(str(name_or_path), trust_remote_code=False)
    language = text_config(config, str(name_or_path))
    language.name_or_path = str(name_or_path)
    return language


def text_config(config: Mapping, where: str) -> PretrainedConfig:
    """The language model's config inside a LLaVA config.json. `where` is for the error."""
    family = text_family(config)
    if family not in CONFIG_MAPPING:
        raise ValueError(
            f"{where}: config.json says model_type {config['model_type']!r}; transformers has no {family!r}"
        )
    keep = {key: value for key, value in config.items() if not _is_llava_key(key)}
    for key in ("model_type", "architectures", "_name_or_path", "transformers_version"):
        keep.pop(key, None)
    if keep.get("rope_scaling") is None:
        keep.pop("rope_scaling", None)  # 5.x warns of the old word even where it says nothing
    with unusable_named(where):
        language = CONFIG_MAPPING[family](**keep)
    language.architectures = None
    return language


def text_family(config: Mapping) -> str:
    """The language model's model_type in a LLaVA config.json: "llama", "mistral", "qwen2" ..."""
    kind = config["model_type"]
    if kind != "llava":
        return kind.removeprefix("llava_")
    classes = config.get("architectures") or []  # released 1.5 says "llava" for Llama; other families by their class
    return next((family for family, name in _ARCHITECTURES.items() if name in classes), "llama")


def llava_settings(name_or_path: str | Path) -> dict | None:
    """LLaVA's own keys (mm_* and the like) of a folder's config.json; None for a plain language model or llava-hf.

    Where LLaVA's reader has a default, the result has it: mm_projector_type "linear", mm_vision_select_feature
    "patch", mm_vision_select_layer -2, image_aspect_ratio "square" (absent means CLIP's crop), no image markers.
    """
    config = read_config(name_or_path)
    return settings_of(config) if is_llava(config) else None


def settings_of(config: Mapping) -> dict:
    """`llava_settings` of a config that is already read."""
    settings = {
        "image_aspect_ratio": "square",
        "mm_projector_type": "linear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
    }
    settings.update((key, value) for key, value in config.items() if _is_llava_key(key) and value is not None)
    return settings


def refuse_unsupported(settings: Mapping, where: str) -> None:
    """ValueError for what LLaVA's later or earlier code does with images and we do not: it would be silently wrong."""
    checks = (
        ("mm_use_im_start_end", (False,), "an image between <im_start> and <im_end>"),
        ("mm_patch_merge_type", ("flat", ""), "LLaVA-1.6's tiles"),
        ("image_aspect_ratio", ("square", "pad"), "another way to fit images"),
        ("mm_resampler_type", (), "a resampler"),
        ("s2", (False,), "the tower at several scales"),
    )
    for key, known, what in checks:
        if settings.get(key) is not None and settings[key] not in known:
            raise ValueError(
                f"{where}: config.json has {key} = {settings[key]!r} ({what}), which is not supported; supported: "
                f"{', '.join(map(repr, known)) or 'none'}"
            )


def _is_llava_key(key: str) -> bool:
    return key.startswith("mm_") or key in _LLAVA_KEYS or key in ("s2", "s2_scales")


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
