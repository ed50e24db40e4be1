"""What a stage-2 run can be told. What it shares with stage 1 is in arguments.py; here are the published differences.

    parse_finetune(["--config", "scripts/configs/playground_finetune.yaml", "--lora_enable", "True"])

Defaults are LLaVA-1.5's published stage-2 recipe (scripts/v1_5/finetune.sh and finetune_lora.sh at c121f04) unless a
field says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llava_pat.training.arguments import AlignmentArguments, DataArguments, ModelArguments, TrainingArguments
from llava_pat.training.command_line import Stage, option, parse
from llava_pat.training.consistency import check, check_finetune

_RECIPE = "LLaVA-1.5 scripts/v1_5/finetune.sh"
_LORA = "LLaVA-1.5 scripts/v1_5/finetune_lora.sh"


@dataclass
class FinetuneModelArguments(ModelArguments):
    """The three parts: vision tower, projector, language model, and which of them train."""

    model_name_or_path: str | None = option(
        None, "Language model, or a whole LLaVA checkpoint to go on from: a folder or a hub id. Required."
    )
    vision_tower: str | None = option(
        None,
        "Vision tower: a folder or a hub id. Default: the one that a LLaVA checkpoint in model_name_or_path names.",
    )
    version: str = option("v1", f"Conversation template ({_RECIPE}).")
    pretrain_mm_mlp_adapter: str | None = option(
        None,
        "The projector of stage 1 (mm_projector.bin/.safetensors or its folder). Required unless model_name_or_path is "
        "a LLaVA checkpoint; the word none starts from a random projector.",
    )
    tune_mm_mlp_adapter: bool = option(False, "True is stage 1, train/pretrain.py.")
    freeze_backbone: bool = option(False, f"Keep the language model frozen ({_RECIPE}: False).")
    freeze_mm_mlp_adapter: bool = option(False, f"Keep the projector frozen ({_RECIPE}: False).")
    unfreeze_mm_vision_tower: bool = option(
        False, "Train the vision tower as well; its weights are then part of the checkpoint (LLaVA-1.5: False)."
    )
    mm_vision_tower_layers: int | None = option(
        None, "With unfreeze_mm_vision_tower: train only this many of the tower's last used layers. Default: all."
    )


@dataclass
class FinetuneDataArguments(DataArguments):
    """Files to train on and to measure on."""

    image_aspect_ratio: Literal["square", "pad"] = option(
        "pad", f"pad: pad to a square first ({_RECIPE}); square: what the tower's own processor does."
    )
    bad_records: Literal["error", "skip"] = option(
        "skip",
        "Records that cannot be trained on (LLaVA's mix665K has some, which LLaVA masks or trains on in silence): "
        "leave them out and say so, or stop at start.",
    )


@dataclass
class AdapterArguments:
    """LoRA, and a quantised base model beneath it (QLoRA)."""

    _argument_group_name = "adapter"

    lora_enable: bool = option(False, "Train low-rank adapters of the language model instead of its weights.")
    lora_r: int = option(128, f"Rank ({_LORA}).")
    lora_alpha: int = option(256, f"Scale: updates count lora_alpha / lora_r ({_LORA}).")
    lora_dropout: float = option(0.05, "Dropout before the adapters (llava/train/train.py).")
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "Which biases train (llava/train/train.py).")
    bits: int = option(16, "4 or 8: the base model is quantised by bitsandbytes; 16: it is not (llava/train/train.py).")
    quant_type: Literal["nf4", "fp4"] = option("nf4", "4-bit data type (llava/train/train.py).")
    double_quant: bool = option(True, "Quantise the quantisation constants as well (llava/train/train.py).")


@dataclass
class FinetuneTrainingArguments(TrainingArguments):
    """transformers' own arguments with the published recipe as defaults, and what LLaVA adds to them."""

    output_dir: str | None = option(
        None,
        "Where the run goes; its name must hold 'llava', and 'lora' if and only if it trains adapters. Without the "
        "flag: the variable OUTPUT_DIR, else the YAML's value, else checkpoints/llava-v1.5-finetune.",
    )
    per_device_train_batch_size: int = option(
        16, f"Sequences per device and micro-step; 8 devices make 128 ({_RECIPE})."
    )
    global_batch_size: int | None = option(
        None, "Sequences per optimizer step on all devices; sets gradient_accumulation_steps. The recipe's is 128."
    )
    learning_rate: float = option(2e-5, f"Peak learning rate ({_RECIPE}; with LoRA 2e-4: {_LORA}).")
    mm_projector_lr: float | None = option(None, f"The projector's own learning rate ({_LORA}: 2e-5).")
    mm_vision_tower_lr: float | None = option(None, "The vision tower's own learning rate, where it trains.")
    group_by_modality_length: bool = option(
        True, f"Batches of one kind (with images, without) and of similar lengths ({_RECIPE})."
    )
    save_steps: float = option(50000, f"Steps between checkpoints; the recipe saves at the end only ({_RECIPE}).")
    save_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", "Of the finished checkpoint's weights. auto: the precision that was computed in, as LLaVA's."
    )


class FinetuneArguments(NamedTuple):
    """All arguments of a stage-2 run, complete and free of contradictions."""

    model: FinetuneModelArguments
    data: FinetuneDataArguments
    alignment: AlignmentArguments
    adapter: AdapterArguments
    training: FinetuneTrainingArguments


def _check(arguments: FinetuneArguments) -> None:
    check(arguments)
    check_finetune(arguments)


FINETUNE = Stage(
    name="stage 2",
    script="train/finetune.py",
    description="Stage 2: visual instruction tuning of projector and language model, whole or by LoRA/QLoRA.",
    kinds=(
        FinetuneModelArguments,
        FinetuneDataArguments,
        AlignmentArguments,
        AdapterArguments,
        FinetuneTrainingArguments,
    ),
    complete=FinetuneArguments,
    check=_check,
    output_dir="checkpoints/llava-v1.5-finetune",
    dropped={"lora_weight_path": "a run goes on from its own checkpoints; merge adapters first to build on them"},
    refused={"mm_patch_merge_type": (("flat",), "LLaVA-1.5 has one grid of patches per image")},
)


def parse_finetune(argv: Sequence[str] | None = None) -> FinetuneArguments:
    """Read a stage-2 command line (see command_line.parse)."""
    return parse(argv, FINETUNE)
