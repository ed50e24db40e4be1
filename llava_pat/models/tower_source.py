"""A vision tower's folder or hub id as config and lazy weights, without a model; for conversions.

vision: CLIPVisionConfig, SiglipVisionConfig, Dinov2Config or Dinov2WithRegistersConfig. Names: tower_names.py.
"""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from llava_pat.models.loading import tower_config, tower_kind
from llava_pat.models.open_clip_tower import is_open_clip
from llava_pat.models.shards import LazyTensor, fit, tensor_files
from llava_pat.models.tower_names import joined_shape, name_in_files, parts_by_name
from llava_pat.models.unusable import unusable_named

BUFFERS = (".rotary_emb.inv_freq", ".position_ids")
"""What old versions saved and new ones compute."""

_WHOLE = ("text_model.", "logit_scale", "logit_bias", "text_projection.", "visual_projection.", "classifier.")
"""The other half of a whole CLIP or SigLIP, the head of a DINOv2 that classifies."""


def vision_config_of(tower_at: str) -> PretrainedConfig:
    """The tower's config. Raises ValueError for an architecture that is no tower here, and for open_clip's."""
    if is_open_clip(tower_at):
        raise ValueError(
            f"vision tower {tower_at}: transformers has no class for open_clip's towers, so there is no llava-hf form; "
            "keep LLaVA's layout"
        )
    return tower_config(tower_at)


def vision_config_from(part: dict, where: str) -> PretrainedConfig:
    """The tower's config out of llava-hf's `vision_config`. ValueError as `vision_config_of`."""
    part = dict(part)
    kind = part.pop("model_type", "clip_vision_model")  # as LlavaConfig fills it in
    tower_kind(kind, where)
    with unusable_named(where):
        return CONFIG_MAPPING[kind](**part)


def class_tokens(vision: PretrainedConfig) -> int:
    """Positions in front of the patches (and of the registers): 0 for SigLIP, 1 for the others."""
    return int(vision.model_type != "siglip_vision_model")


def feature_of(vision: PretrainedConfig, strategy: str, where: str) -> str:
    """llava-hf's vision_feature_select_strategy -> LLaVA's mm_vision_select_feature.

    "default" drops the first position, whatever it is. Raises ValueError where that would be a patch.
    """
    if class_tokens(vision):
        return {"default": "patch", "full": "cls_patch"}[strategy]
    if strategy == "default":
        raise ValueError(
            f"{where}: vision_feature_select_strategy 'default' drops the first position, which is a patch in a "
            f"{vision.model_type}: no layout but llava-hf's can say that"
        )
    return "patch"


def strategy_of(vision: PretrainedConfig, feature: str) -> str:
    """The way back."""
    return "default" if feature == "patch" and class_tokens(vision) else "full"


def tower_shapes(vision: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names in files and shapes of the weights that a tower of this config has."""
    with torch.device("meta"):
        model = tower_kind(vision.model_type, "").model(vision)
    shapes = {name: joined_shape([tuple(part.shape) for part in parts]) for name, parts in parts_by_name(model).items()}
    return {name: shape for name, shape in shapes.items() if not name.endswith(BUFFERS)}


def tower_weights(tower_at: str, vision: PretrainedConfig) -> dict[str, LazyTensor]:
    """A tower's weights from its own folder (the tower's alone or a whole CLIP's, SigLIP's), strict."""
    stored = tensor_files(tower_at)
    whole = any(key.startswith("text_model.") for key in stored)
    named = {
        name_in_files(vision.model_type, key.removeprefix(f"{vision.model_type}.")): tensor
        for key, tensor in stored.items()
        if not key.endswith(BUFFERS) and not key.startswith(_WHOLE) and (not whole or key.startswith("vision_model."))
    }
    return fit(tower_shapes(vision), named, f"vision tower {tower_at}")
