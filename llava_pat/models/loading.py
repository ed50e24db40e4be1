"""Loads the two pretrained parts and their image processor, and refuses what would be silently wrong.

transformers only warns when weights are missing from a checkpoint and starts them at random. Here that is an error.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BaseImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import is_flash_attn_2_available
from transformers.utils.quantization_config import QuantizationConfigMixin

from llava_pat.models.llava_config import language_config, read_config
from llava_pat.models.open_clip_tower import is_open_clip, load_open_clip_processor, load_open_clip_tower
from llava_pat.models.shards import tensor_files
from llava_pat.models.towers import VisionTower
from llava_pat.models.unusable import unusable_named

logger = logging.getLogger(__name__)

_OTHER_HALF = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
    "classifier.",
)
"""What a whole model's checkpoint holds beside its vision tower (`position_ids`: a buffer that old versions saved)."""

_LLAVA_PARTS = ("model.mm_projector.", "model.vision_tower.", "model.image_newline")
"""What a checkpoint in LLaVA's layout holds beside its language model; read elsewhere."""

_READS_IDS = {
    "lm_head_multiplier": "it scales the embeddings of ids but not those that it is handed",  # Falcon-H1
    "hidden_size_per_layer_input": "every layer of it reads the ids again",  # Gemma 3n, Gemma 4
}
"""Config keys of language models for which ids and the embeddings of ids are two things."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class TowerKind:
    """The classes of a tower's architecture, and where its size comes from."""

    model: type[PreTrainedModel]
    processor: type[BaseImageProcessor]
    whole_patches: bool = True  # the image's side must be a multiple of the patch's
    side_from_processor: bool = False  # position embeddings are interpolated: the processor says how large images are


_CLIP = TowerKind(CLIPVisionModel, CLIPImageProcessorPil)
_SIGLIP = TowerKind(SiglipVisionModel, SiglipImageProcessorPil, whole_patches=False)
_TOWERS = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": TowerKind(Dinov2Model, BitImageProcessorPil, side_from_processor=True),
    "dinov2_with_registers": TowerKind(Dinov2WithRegistersModel, BitImageProcessorPil, side_from_processor=True),
}
"""By the config's model_type. SigLIP2 checkpoints of a fixed resolution say "siglip"; "siglip2" is NaFlex."""


@contextmanager
def _hugging_face_report_off() -> Iterator[None]:
    """Silences transformers' load report: the caller reads the same facts and raises on those that matter.

    The random state comes back as it was: how much of it loading draws depends on ZeRO-3 and on transformers, and a new
    projector must follow from the seed alone.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def _damaged_file_named(name_or_path: str) -> Iterator[None]:
    """A truncated file, or a pickle that is no tensors, becomes the ValueError that names the file and the way out.
    So does a setting of a wrong kind."""
    try:
        with unusable_named(name_or_path):
            yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        tensor_files(name_or_path)  # reads all headers and raises, if it was a file's fault
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name_or_path}: cannot be loaded as its config.json says ({reason})") from error


def load_vision_tower(name_or_path: str | Path, dtype: torch.dtype, attn_implementation: str) -> VisionTower:
    """The vision tower of a CLIP, SigLIP, DINOv2 or open_clip model (a folder or a name), all layers, in eval mode.

    Raises ValueError when it is another architecture or when a weight is missing or has another shape.
    """
    name_or_path = str(name_or_path)
    if is_open_clip(name_or_path):
        return load_open_clip_tower(name_or_path, dtype)
    config = tower_config(name_or_path)
    kind, side = tower_kind(config.model_type, name_or_path), tower_image_size(name_or_path, config)
    if any(not isinstance(size, int) or size < 1 for size in (side, config.patch_size)):
        raise ValueError(f"vision tower {name_or_path}: image size {side!r} and patch size {config.patch_size!r}")
    if (kind.whole_patches or kind.side_from_processor) and side % config.patch_size:
        raise ValueError(
            f"vision tower {name_or_path}: image size {side} is not a multiple of patch size {config.patch_size}"
        )
    with _hugging_face_report_off(), _damaged_file_named(name_or_path):
        model, info = kind.model.from_pretrained(
            name_or_path, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    surplus = {key for key in info["unexpected_keys"] if not key.startswith(_OTHER_HALF)}
    _refuse_bad_load(f"vision tower {name_or_path}", info["missing_keys"], info["mismatched_keys"], surplus)
    return VisionTower(model, side)


def load_whole_clip(name_or_path: str | Path, dtype: torch.dtype) -> CLIPModel:
    """Both towers of a CLIP with their projections (a folder or hub id), frozen and in eval mode.

    Raises ValueError when it is another architecture or when a weight is missing or has another shape.
    """
    name_or_path = str(name_or_path)
    kind = read_config(name_or_path).get("model_type")
    if str(kind).startswith("siglip"):
        raise ValueError(
            f"{name_or_path}: SigLIP's images enter the space of its texts through a pooling head, and no single patch "
            "does (SEA, which used SigLIP, does not say how). Take the labels of a CLIP with as many patches, "
            "--patch_words_tower"
        )
    if kind != "clip":
        raise ValueError(
            f"{name_or_path}: its config.json says model_type {kind!r}, which has no text encoder that its patches "
            "could be compared with; give a whole CLIP ('clip'), such as openai/clip-vit-large-patch14-336"
        )
    with _hugging_face_report_off(), _damaged_file_named(name_or_path):
        model, info = CLIPModel.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True)
    surplus = {key for key in info["unexpected_keys"] if not key.endswith(".position_ids")}
    _refuse_bad_load(f"CLIP {name_or_path}", info["missing_keys"], info["mismatched_keys"], surplus)
    return model.requires_grad_(False).eval()


def load_language_model(
    name_or_path: str | Path,
    dtype: torch.dtype,
    attn_implementation: str,
    quantization_config: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Any AutoModelForCausalLM folder or hub id, or the language model of a LLaVA-layout folder, in eval mode.

    attn_implementation: see `available_attention`; what was taken is in `.config._attn_implementation`.
    Raises ValueError when a weight is missing or has another shape, or when the model is no plain language model.
    """
    name_or_path = str(name_or_path)
    config = language_config(name_or_path)
    if config.get_text_config() is not config:
        raise ValueError(
            f"language model {name_or_path}: its config.json (model_type {config.model_type!r}) holds more than a "
            "language model; take a text-only checkpoint"
        )
    for key, reason in _READS_IDS.items():
        if config.to_dict().get(key):
            raise ValueError(
                f"language model {name_or_path}: {reason} (config.json has {key}), so image patches cannot stand in "
                "for words. Such models are not supported."
            )
    attention = _attention_of(config, available_attention(attn_implementation))
    keywords = {} if quantization_config is None else {"quantization_config": quantization_config}
    with _hugging_face_report_off(), _damaged_file_named(name_or_path):
        llm, info = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
            **keywords,
        )
    _refuse_bad_load(f"language model {name_or_path}", info["missing_keys"], info["mismatched_keys"], set())
    surplus = {key for key in info["unexpected_keys"] if not key.startswith(_LLAVA_PARTS)}
    if surplus:
        logger.warning("language model %s: unused weights %s", name_or_path, _some(surplus))
    drop_idle_sampling(llm, name_or_path)
    return llm.eval()


def available_attention(requested: str) -> str:
    """`requested`, or "sdpa" with one log line where flash-attention was asked for and cannot run here."""
    if requested != "flash_attention_2":
        return requested
    if not torch.cuda.is_available():
        reason = "there is no GPU"
    elif not is_flash_attn_2_available():
        reason = "flash-attn is not installed (pip install flash-attn --no-build-isolation)"
    else:
        return requested
    logger.warning("attention: flash_attention_2 was asked for, but %s; taking sdpa, the same numbers slower", reason)
    return "sdpa"


def _attention_of(config: PretrainedConfig, attention: str) -> str:
    """Gemma 2 caps its attention scores, which sdpa cannot do: some versions refuse, others leave the cap out."""
    if attention == "sdpa" and config.to_dict().get("attn_logit_softcapping") is not None:
        logger.warning("attention: sdpa cannot cap scores as %s models do; taking eager, slower", config.model_type)
        return "eager"
    return attention


def drop_idle_sampling(llm: PreTrainedModel, name_or_path: str) -> None:
    """Takes sampling parameters out of a generation config that does not sample, with one log line.

    Vicuna ships temperature 0.9 and top_p 0.6 with do_sample false. They have no effect on greedy decoding, but
    transformers refuses to save a model that has them, hours later.
    """
    config = llm.generation_config
    if config is None or config.do_sample:
        return
    settings = config.to_dict()
    idle = {key: settings[key] for key in _SAMPLING if settings.get(key) is not None}
    if idle:
        config.update(**dict.fromkeys(idle))
        logger.info(
            "language model %s: generation_config.json has %s but do_sample false; they have no effect and are dropped",
            name_or_path, ", ".join(f"{key} {value}" for key, value in idle.items()),
        )  # fmt: skip


def load_image_processor(name_or_path: str | Path, image_size: int) -> BaseImageProcessor:
    """The tower's image processor, by transformers' PIL backend: no torchvision needed, and LLaVA's pixels.

    image_size: the tower's, in pixels. Raises ValueError when the processor makes images of another size.
    """
    name_or_path = str(name_or_path)
    if is_open_clip(name_or_path):
        processor = load_open_clip_processor(name_or_path)
    else:
        kind = tower_kind(tower_config(name_or_path).model_type, name_or_path)
        with unusable_named(name_or_path):
            processor = kind.processor.from_pretrained(name_or_path)
    with unusable_named(name_or_path):
        height, width = _output_size(processor)
    if (height, width) != (image_size, image_size):
        raise ValueError(
            f"vision tower {name_or_path}: preprocessor_config.json makes {height} x {width}, but the tower's "
            f"config.json takes {image_size} x {image_size} pixels, so the grids differ. Make the two files agree."
        )
    return processor


def tower_config(name_or_path: str) -> PretrainedConfig:
    """A vision tower's own config, out of a whole CLIP's or SigLIP's where it is one. Errors as `tower_kind`."""
    tower_kind(read_config(name_or_path).get("model_type"), name_or_path)
    with unusable_named(name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    return config.vision_config if config.model_type in ("clip", "siglip") else config


def tower_image_size(name_or_path: str, config: PretrainedConfig) -> int:
    """Side of the images that a tower is given, in pixels: its config's, or what its image processor makes (DINOv2).

    name_or_path: where the image processor is. Raises ValueError when that makes no squares.
    """
    kind = tower_kind(config.model_type, name_or_path)
    return _processed_side(kind, name_or_path) if kind.side_from_processor else config.image_size


def tower_kind(model_type: object, name_or_path: str) -> TowerKind:
    """The classes of an architecture. Raises ValueError for one that is no tower here."""
    if model_type == "siglip2":
        raise ValueError(
            f"vision tower {name_or_path}: a NaFlex SigLIP2 has no fixed grid of patches; take a SigLIP2 of a fixed "
            "resolution, such as google/siglip2-so400m-patch14-384"
        )
    if not isinstance(model_type, str) or model_type not in _TOWERS:
        raise ValueError(
            f"vision tower {name_or_path}: its config.json says model_type {model_type!r}, expected one of "
            f"{', '.join(map(repr, _TOWERS))}, or a name that starts with 'open_clip:'"
        )
    return _TOWERS[model_type]


def _processed_side(kind: TowerKind, name_or_path: str) -> int:
    with unusable_named(name_or_path):
        height, width = _output_size(kind.processor.from_pretrained(name_or_path))
    if height != width:
        raise ValueError(f"vision tower {name_or_path}: preprocessor_config.json makes {height} x {width}, no square")
    return height


def _output_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width that leave the processor: those of its crop, or of its resize when it does not crop."""
    size = processor.crop_size if processor.to_dict().get("do_center_crop") else processor.size
    return size["height"], size["width"]


def _refuse_bad_load(what: str, missing: set, mismatched: set, surplus: set) -> None:
    if missing or mismatched or surplus:
        raise ValueError(
            f"{what}: the weights do not fit the config: {len(missing)} missing {_some(missing)}, {len(mismatched)} "
            f"of another shape {_some(mismatched)}, {len(surplus)} unexpected {_some(surplus)}. Is the folder complete "
            "and its config.json its own?"
        )


def _some(names: set, most: int = 5) -> str:
    return str(sorted(map(str, names))[:most]) if len(names) <= most else f"{sorted(map(str, names))[:most]} ..."
