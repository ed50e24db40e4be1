"""Model, tokenizer and data sets of a run, from its arguments; anything that does not fit is refused here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava_pat.alignment import requirements
from llava_pat.data.collate import Collator
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import geometry_for
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.models.adapters import add_lora
from llava_pat.models.checkpoint import load_projector
from llava_pat.models.from_folder import load_own_tower
from llava_pat.models.fused_kernels import fuse
from llava_pat.models.llava_config import llava_settings, refuse_unsupported
from llava_pat.models.loading import load_image_processor
from llava_pat.models.open_clip_tower import PREFIX as OPEN_CLIP
from llava_pat.models.quantized import prepare_quantized, quantization
from llava_pat.models.source import find_tower, layout_of
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.training.arguments import ModelArguments, PretrainArguments, TrainingArguments
from llava_pat.training.finetune_arguments import FinetuneArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.patch_words import PatchWordSource, open_patch_words
from llava_pat.types import DataError

RANDOM_PROJECTOR = "none"


class Parts(NamedTuple):
    """What a run is made of."""

    model: VisionLanguageModel
    tokenizer: Any
    train: LlavaDataset
    held_out: LlavaDataset | None
    collator: Collator
    words: PatchWordSource | None = None  # labels of patches, where the objective learns from them
    own_tower: bool = False  # the vision tower is not, or will not be, the one that its name says: it was trained


def build_parts(arguments: PretrainArguments | FinetuneArguments) -> Parts:
    """Everything that a stage needs, ready to train; ConfigError or DataError for what does not fit together."""
    return _with_data(arguments, *build_model(arguments))


def build_model(arguments: PretrainArguments | FinetuneArguments) -> tuple[VisionLanguageModel, bool]:
    """The model with what trains unfrozen, and whether its tower is, or will be, its own."""
    if isinstance(arguments, PretrainArguments):
        model, own_tower = _stage1_model(arguments), False
    else:
        model, own_tower = _stage2_model(arguments)
    if arguments.training.padding_free:
        model.remove_padding()
    if arguments.training.use_liger_kernel:
        fuse(model.llm, arguments.training.liger_kernel_config)
    return model, own_tower


def compute_dtype(training: TrainingArguments) -> torch.dtype:
    """What matrix products run in."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def _stage1_model(arguments: PretrainArguments) -> VisionLanguageModel:
    model_arguments = arguments.model
    for flag in ("vision_tower", "model_name_or_path"):
        refuse_missing_folder(flag, vars(model_arguments)[flag])
    with blamed_on("vision_tower", "model_name_or_path"):
        model = VisionLanguageModel.from_pretrained(
            model_arguments.vision_tower,
            model_arguments.model_name_or_path,
            model_arguments.mm_projector_type,
            model_arguments.mm_vision_select_layer,
            model_arguments.mm_vision_select_feature,
            dtype=compute_dtype(arguments.training),
            attn_implementation=model_arguments.attn_implementation,
        )
    if model_arguments.pretrain_mm_mlp_adapter:
        with blamed_on("pretrain_mm_mlp_adapter"):
            load_projector(model_arguments.pretrain_mm_mlp_adapter, model.projector)
    model.freeze_for_stage1()
    return model


def _stage2_model(arguments: FinetuneArguments) -> tuple[VisionLanguageModel, bool]:
    """The model, and whether its tower is part of the checkpoint."""
    model_arguments, adapter, training = arguments.model, arguments.adapter, arguments.training
    refuse_missing_folder("model_name_or_path", model_arguments.model_name_or_path)
    with blamed_on("model_name_or_path"):
        settings = llava_settings(model_arguments.model_name_or_path)
    if settings is not None:
        _go_on_from(model_arguments, settings)
    if model_arguments.vision_tower is None:
        raise ConfigError("missing --vision_tower: --model_name_or_path is no LLaVA checkpoint that names one")
    refuse_missing_folder("vision_tower", model_arguments.vision_tower)
    if model_arguments.pretrain_mm_mlp_adapter is None and settings is None:
        raise ConfigError(
            "missing --pretrain_mm_mlp_adapter: the projector of stage 1 (bash scripts/pretrain_pat.sh makes one). "
            f"To start from a random one on purpose: --pretrain_mm_mlp_adapter {RANDOM_PROJECTOR}"
        )
    came_with_tower = settings is not None and bool(settings["unfreeze_mm_vision_tower"])
    own_tower = model_arguments.unfreeze_mm_vision_tower or came_with_tower
    if own_tower and adapter.lora_enable:
        raise ConfigError(
            f"--lora_enable True: {model_arguments.model_name_or_path} holds a vision tower that was trained, for "
            "which LLaVA's LoRA folder has no place; train without adapters"
        )
    dtype = compute_dtype(training)
    # Weights that train are kept in fp32; under DeepSpeed, which keeps its own fp32 copies, in the compute dtype.
    master = dtype if training.deepspeed else torch.float32
    trains_llm = not (model_arguments.freeze_backbone or adapter.lora_enable)
    with blamed_on("vision_tower", "model_name_or_path"):
        model = VisionLanguageModel.from_pretrained(
            model_arguments.vision_tower,
            model_arguments.model_name_or_path,
            model_arguments.mm_projector_type,
            model_arguments.mm_vision_select_layer,
            model_arguments.mm_vision_select_feature,
            dtype=master if model_arguments.unfreeze_mm_vision_tower else dtype,
            attn_implementation=model_arguments.attn_implementation,
            llm_dtype=master if trains_llm else dtype,
            whole_tower=own_tower,
            quantization_config=quantization(adapter.bits, adapter.quant_type, adapter.double_quant, dtype),
        )
        if came_with_tower:
            load_own_tower(model_arguments.model_name_or_path, model.tower)
    tower_layers = -1 if model_arguments.mm_vision_tower_layers is None else model_arguments.mm_vision_tower_layers
    model.set_trainable(
        llm=trains_llm,
        projector=not model_arguments.freeze_mm_mlp_adapter,
        tower_layers=tower_layers if model_arguments.unfreeze_mm_vision_tower else 0,
    )
    _fill_projector(model, model_arguments, settings)
    if adapter.bits < 16:
        prepare_quantized(model, gradient_checkpointing=training.gradient_checkpointing)
    if adapter.lora_enable:
        add_lora(
            model, r=adapter.lora_r, alpha=adapter.lora_alpha, dropout=adapter.lora_dropout, bias=adapter.lora_bias
        )
    return model, own_tower


def _go_on_from(model_arguments: ModelArguments, settings: dict[str, Any]) -> None:
    """What a LLaVA checkpoint says about itself stands; flags that contradict it are refused."""
    source = model_arguments.model_name_or_path
    with blamed_on("model_name_or_path"):
        kind = layout_of(source)
        refuse_unsupported(settings, source)
    if kind == "lora":
        raise ConfigError(
            f"--model_name_or_path {source} holds adapters, not a whole model: merge them first, "
            f"bash scripts/convert.sh merge {source} OUT"
        )
    if kind == "stage1":
        raise ConfigError(
            f"--model_name_or_path {source} holds the projector of a stage 1, not a whole model: give its language "
            f"model there, and --pretrain_mm_mlp_adapter {source}"
        )
    for flag in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"):
        asked, theirs = vars(model_arguments)[flag], settings[flag]
        if asked != theirs:
            raise ConfigError(f"--{flag} {asked}: {source} was trained with {theirs}; give that value")
    with blamed_on("model_name_or_path"):
        model_arguments.vision_tower = find_tower(source, settings["mm_vision_tower"], model_arguments.vision_tower)


def _fill_projector(
    model: VisionLanguageModel, model_arguments: ModelArguments, settings: dict[str, Any] | None
) -> None:
    source = model_arguments.pretrain_mm_mlp_adapter
    if source is None:
        with blamed_on("model_name_or_path"):
            load_projector(model_arguments.model_name_or_path, model.projector)
    elif source != RANDOM_PROJECTOR:
        with blamed_on("pretrain_mm_mlp_adapter"):
            load_projector(source, model.projector)


def _with_data(arguments: PretrainArguments | FinetuneArguments, model: VisionLanguageModel, own_tower: bool) -> Parts:
    model_arguments, data, training = arguments.model, arguments.data, arguments.training
    with blamed_on("model_name_or_path"):
        tokenizer = load_tokenizer(model_arguments.model_name_or_path, training.model_max_length)
    if len(tokenizer) > model.vocab_size:
        raise ConfigError(
            f"{model_arguments.model_name_or_path}: the tokenizer has {len(tokenizer)} ids, the model "
            f"{model.vocab_size} embeddings; take the tokenizer that belongs to the model"
        )
    with blamed_on("vision_tower"):
        image_processor = load_image_processor(model_arguments.vision_tower, model.image_size)
        geometry = geometry_for(data.image_aspect_ratio, image_processor)
    with blamed_on("version"):
        template = get_template(model_arguments.version)

    def dataset(path: str, images: str, regions: str | None) -> LlavaDataset:
        return LlavaDataset(
            load_records(path, data.bad_records),
            images,
            template,
            tokenizer,
            geometry,
            model.patch_size,
            load_regions(regions) if regions else None,
            training.model_max_length,
        )

    held_out = None
    if data.eval_data_path:
        images = data.eval_image_folder or data.image_folder
        held_out = dataset(data.eval_data_path, images, data.eval_regions_path)
    words = None
    if "patch_words" in requirements(arguments.alignment.plan()):
        with blamed_on("patch_words_path", "patch_words_tower"):
            words = open_patch_words(
                data.patch_words_path,
                data.patch_words,
                data.patch_words_tower or model_arguments.vision_tower,
                data.patch_words_args,
                geometry,
                model.patch_size,
                data.image_aspect_ratio,
                tokenizer,
            )
    collator = Collator(
        model.num_patches, tokenizer.pad_token_id, training.model_max_length, words.tokens if words else None
    )
    train = dataset(data.data_path, data.image_folder, data.regions_path)
    train.patch_words = words.folder if words else None
    return Parts(model, tokenizer, train, held_out, collator, words, own_tower)


@contextlib.contextmanager
def blamed_on(*flags: str) -> Iterator[None]:
    """What transformers or a room of ours says about the user's files becomes an error of these flags."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{' and '.join(f'--{flag}' for flag in flags)}: {error}") from error


def refuse_missing_folder(flag: str, name: str) -> None:
    """transformers takes a folder that is not there for a hub id, and says only that it is no good one."""
    name = name.removeprefix(OPEN_CLIP)
    if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f"--{flag} {name}: no such folder (from {Path.cwd()}), and not a hub id")
