"""A model ready to answer, from a folder of any layout: LLaVA's, llava-hf's, stage 1's projector, LoRA's adapters."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BaseImageProcessor, LlavaForConditionalGeneration

from llava_pat.models.checkpoint import load_projector
from llava_pat.models.llava_config import read_config, refuse_unsupported, settings_of
from llava_pat.models.llava_layout import TOWER_PREFIX
from llava_pat.models.loading import available_attention, load_image_processor, tower_image_size, tower_kind
from llava_pat.models.projectors import build_projector
from llava_pat.models.restore import fill
from llava_pat.models.shards import tensor_files
from llava_pat.models.source import HF_RECORD, find_tower, hf_aspect, layout_of, stage1_base
from llava_pat.models.tower_names import joined_shape, parts_by_name
from llava_pat.models.tower_source import feature_of
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """What `load_model` found."""

    model: VisionLanguageModel  # in eval mode; nothing trains
    kind: str  # "llava", "hf", "stage1" or "lora"
    tokenizer_source: str  # for data.tokenize.load_tokenizer
    image_aspect_ratio: str  # "square" or "pad": how its images were made
    config: dict  # LLaVA's own settings (mm_* and the like)
    vision_tower: str  # where it was found; for "hf" the folder itself
    image_processor: BaseImageProcessor  # the tower's; data.geometry.geometry_for makes pixels with it


def load_model(
    folder: str | Path,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
) -> LoadedModel:
    """Loads a folder or hub id; what is in the model afterwards was in its files, or an error says what was not.

    base: the language model of a stage-1 or LoRA folder; by default the one its config.json names, if it is there.
    vision_tower: in place of the one that config.json names. dtype: of all weights.
    Raises FileNotFoundError and ValueError, each with the file and the way out.
    """
    folder = str(folder)
    kind = layout_of(folder)
    if kind == "hf":
        return _load_hf(folder, dtype, attn_implementation)
    config = read_config(folder)
    settings = settings_of(config)
    refuse_unsupported(settings, folder)
    if kind == "llava":
        language = folder
    elif kind == "stage1":
        language = stage1_base(folder, config, base)
    else:
        from llava_pat.models.adapters import lora_base  # peft is an extra: only adapters need it

        language = lora_base(folder, base)
    tower_at = find_tower(folder, settings["mm_vision_tower"], vision_tower)
    model = VisionLanguageModel.from_pretrained(
        tower_at,
        language,
        settings["mm_projector_type"],
        settings["mm_vision_select_layer"],
        settings["mm_vision_select_feature"],
        dtype,
        attn_implementation,
        whole_tower=bool(settings["unfreeze_mm_vision_tower"]),
    )
    if kind == "lora":
        from llava_pat.models.adapters import load_lora

        load_lora(model, folder)
    else:
        load_projector(folder, model.projector)
        if settings["unfreeze_mm_vision_tower"] and kind == "llava":
            load_own_tower(folder, model.tower)
    model.projector.to(dtype)
    model.requires_grad_(False)
    logger.info("%s: %s layout, language model from %s, vision tower from %s", folder, kind, language, tower_at)
    processor = load_image_processor(tower_at, model.image_size)
    return LoadedModel(model.eval(), kind, language, settings["image_aspect_ratio"], settings, tower_at, processor)


def load_own_tower(folder: str, tower: VisionTower) -> None:
    """The tower that was trained is in the folder; LLaVA reads it from there too."""
    stored = {key: t for key, t in tensor_files(folder).items() if key.startswith(TOWER_PREFIX)}
    wanted = {TOWER_PREFIX + name: parts for name, parts in parts_by_name(tower.model).items()}
    stored = {key: t for key, t in stored.items() if not key.endswith(".position_ids")}
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{folder}: config.json has unfreeze_mm_vision_tower true, but the weights of the tower do not fit: "
            f"{len(missing)} missing {missing[:3]}, {len(surplus)} unexpected {surplus[:3]}"
        )
    for key, parts in wanted.items():
        shape = joined_shape([tuple(part.shape) for part in parts])
        if stored[key].shape != shape:
            raise ValueError(
                f"{folder}: {key} is {list(stored[key].shape)} there and {list(shape)} in the tower that "
                "config.json names; say --vision_tower with the one it was trained from"
            )
    for key, parts in wanted.items():
        fill(parts, stored[key])


def _load_hf(folder: str, dtype: torch.dtype, attn_implementation: str) -> LoadedModel:
    """By transformers' own class, whose parts then become ours: every weight is read once, by their rules."""
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation=available_attention(attn_implementation), output_loading_info=True
    )
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        wrong = sorted(map(str, info[what]))
        if wrong:
            raise ValueError(f"{folder}: the weights do not fit its config.json: {what} {wrong[:4]} ({len(wrong)})")
    config = theirs.config
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype, trust_remote_code=False)
    llm.model, llm.lm_head = theirs.model.language_model, theirs.lm_head
    llm.generation_config = theirs.generation_config
    width, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
    projector = build_projector("mlp2x_gelu", width, hidden).to(dtype)
    source = theirs.model.multi_modal_projector
    projector[0].load_state_dict(source.linear_1.state_dict())
    projector[2].load_state_dict(source.linear_2.state_dict())
    vision = config.vision_config
    feature = feature_of(vision, config.vision_feature_select_strategy, folder)
    tower = VisionTower(theirs.model.vision_tower, tower_image_size(folder, vision))
    model = VisionLanguageModel(tower, projector, llm, config.vision_feature_layer, feature)
    settings = read_config(folder).get(HF_RECORD, {}).get("settings", {})
    model.requires_grad_(False)
    aspect = settings.get("image_aspect_ratio") or hf_aspect(folder, vision.model_type)
    # geometry_for pads, as training does
    processor = tower_kind(vision.model_type, folder).processor.from_pretrained(folder, do_pad=False)
    return LoadedModel(model.eval(), "hf", folder, aspect, settings, folder, processor)
