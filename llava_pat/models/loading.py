"""Loads the two pretrained parts and their image processor, and refuses what would be silently wrong.

transformers only warns when weights are missing from a checkpoint and starts them at random. Here that is an error.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

logger = logging.getLogger(__name__)

_OTHER_HALF_OF_CLIP = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "vision_model.embeddings.position_ids",
)
"""What a CLIPModel checkpoint holds beside its vision tower (`position_ids` is a buffer that old versions saved)."""

_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
"""Config keys of language models whose logits are not `lm_head(hidden)`, with the value that switches the step off."""


@contextmanager
def _hugging_face_report_off() -> Iterator[None]:
    """Silences transformers' load report: the caller reads the same facts and raises on those that matter."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def load_vision_tower(name_or_path: str, dtype: torch.dtype, attn_implementation: str) -> CLIPVisionModel:
    """The vision tower of a CLIPVisionModel or CLIPModel folder or hub id, all layers, in eval mode.

    Raises ValueError when it is another architecture or when a weight is missing or has another shape.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"vision tower {name_or_path}: its config.json says model_type {config.model_type!r}, expected "
            "'clip_vision_model' or 'clip'"
        )
    vision_config = config if isinstance(config, CLIPVisionConfig) else config.vision_config
    if vision_config.image_size % vision_config.patch_size:
        raise ValueError(
            f"vision tower {name_or_path}: image size {vision_config.image_size} is not a multiple of patch size "
            f"{vision_config.patch_size}"
        )
    with _hugging_face_report_off():
        tower, info = CLIPVisionModel.from_pretrained(
            name_or_path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    surplus = {key for key in info["unexpected_keys"] if not key.startswith(_OTHER_HALF_OF_CLIP)}
    _refuse_bad_load(f"vision tower {name_or_path}", info["missing_keys"], info["mismatched_keys"], surplus)
    return tower.eval()


def load_language_model(name_or_path: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Any AutoModelForCausalLM folder or hub id, in eval mode.

    Raises ValueError when a weight is missing or has another shape, or when its logits are more than `lm_head(hidden)`.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    settings = config.to_dict()
    for key, off in _LOGIT_TRANSFORMS.items():
        if key in settings and settings[key] not in (None, off):
            raise ValueError(
                f"language model {name_or_path}: config.json has {key} = {settings[key]}, so its logits are not "
                "lm_head(hidden). Such models are not supported."
            )
    with _hugging_face_report_off():
        llm, info = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    _refuse_bad_load(f"language model {name_or_path}", info["missing_keys"], info["mismatched_keys"], set())
    if info["unexpected_keys"]:
        logger.warning("language model %s: unused weights %s", name_or_path, _some(info["unexpected_keys"]))
    return llm.eval()


def load_image_processor(name_or_path: str, image_size: int) -> CLIPImageProcessorPil:
    """The tower's image processor, by transformers' PIL backend: no torchvision needed, and LLaVA's pixels.

    image_size: the tower's, in pixels. Raises ValueError when the processor makes images of another size.
    """
    processor = CLIPImageProcessorPil.from_pretrained(name_or_path)
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    if (height, width) != (image_size, image_size):
        raise ValueError(
            f"vision tower {name_or_path}: preprocessor_config.json crops to {height} x {width}, but the tower's "
            f"config.json takes {image_size} x {image_size} pixels, so the grids differ. Make the two files agree."
        )
    return processor


def enable_gradient_checkpointing(llm: PreTrainedModel, keywords: dict | None) -> None:
    """Switches checkpointing on by the one name that all transformers 5 versions share (5.23 calls it deprecated)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing_enable.*")
        llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False} if keywords is None else keywords
        )


def disable_gradient_checkpointing(llm: PreTrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing_disable.*")
        llm.gradient_checkpointing_disable()


def _refuse_bad_load(what: str, missing: set, mismatched: set, surplus: set) -> None:
    if missing or mismatched or surplus:
        raise ValueError(
            f"{what}: the weights do not fit the config: {len(missing)} missing {_some(missing)}, {len(mismatched)} "
            f"of another shape {_some(mismatched)}, {len(surplus)} unexpected {_some(surplus)}. Is the folder complete "
            "and its config.json its own?"
        )


def _some(names: set, most: int = 5) -> str:
    return str(sorted(map(str, names))[:most]) if len(names) <= most else f"{sorted(map(str, names))[:most]} ..."
