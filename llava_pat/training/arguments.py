"""What a stage-1 run can be told: typed arguments, read from YAML and flags, checked before anything heavy is loaded.

    parse_pretrain(["--config", "scripts/configs/playground_pat.yaml", "--alignment", "none"])

Names are LLaVA's (llava/train/train.py) and transformers'; LLaVA's published argument list is accepted word for word.
Defaults are LLaVA-1.5's published stage-1 recipe (scripts/v1_5/pretrain.sh at c121f04) unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import transformers

from llava_pat.alignment import Part, plan_objectives
from llava_pat.training.command_line import Stage, option, parse
from llava_pat.training.consistency import check, check_pretrain
from llava_pat.training.flags import read_mapping

_RECIPE = "LLaVA-1.5 scripts/v1_5/pretrain.sh"


@dataclass
class ModelArguments:
    """The three parts: vision tower, projector, language model."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(None, "Language model: a folder or a hub id. Required.")
    vision_tower: str | None = option(None, "Vision tower: a CLIPModel or CLIPVisionModel folder or hub id. Required.")
    version: str = option("plain", f"Conversation template. Stage 1: plain ({_RECIPE}).")
    mm_projector_type: str = option("mlp2x_gelu", f"linear, mlp{{N}}x_gelu or identity ({_RECIPE}).")
    pretrain_mm_mlp_adapter: str | None = option(
        None, "Start from this mm_projector.bin/.safetensors, not from random."
    )
    mm_vision_select_layer: int = option(-2, f"Hidden state of the tower that is used ({_RECIPE}).")
    mm_vision_select_feature: Literal["patch", "cls_patch"] = option(
        "patch", "patch drops the class token, cls_patch keeps it (LLaVA's default: patch)."
    )
    tune_mm_mlp_adapter: bool = option(True, f"Train the projector only; stage 1 knows nothing else ({_RECIPE}).")
    mm_use_im_start_end: bool = option(False, f"Only False is supported, as in all LLaVA-1.5 models ({_RECIPE}).")
    mm_use_im_patch_token: bool = option(False, f"Only False is supported, as in all LLaVA-1.5 models ({_RECIPE}).")
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = option(
        "sdpa", "Attention kernel. LLaVA's train_mem.py used flash_attention_2, an extra here."
    )


@dataclass
class DataArguments:
    """Files to train on and to measure on."""

    _argument_group_name = "data"

    data_path: str | None = option(None, "LLaVA JSON or JSONL to train on. Required.")
    image_folder: str | None = option(None, "Folder that the records' image paths are relative to. Required.")
    image_aspect_ratio: Literal["square", "pad"] = option(
        "square", "square: resize and centre crop (stage 1, LLaVA's default); pad: pad to a square first."
    )
    bad_records: Literal["error", "skip"] = option(
        "error",
        "Records that cannot be trained on (an unanswered or empty answer, a wrong number of images, an image outside "
        "the folder, nothing left after truncation): stop at start, or leave them out and say so.",
    )
    max_bad_records: float = option(0.01, "With bad_records skip: stop when more than this share would be left out.")
    missing: Literal["error", "skip", "blank"] = option(
        "error",
        "Images that are not there or cannot be read: stop at start, leave their records out, or put an image of the "
        "mean colour in their place, without regions. skip and blank decode every image at start.",
    )
    max_missing: float = option(
        0.01, "With missing skip or blank: stop when more images are missing; below 1 a share, from 1 on a number."
    )
    regions_path: str | None = option(
        None, "Regions of the training images: JSONL, Parquet, or a folder of them; docs/formats.md has the format."
    )
    patch_words_path: str | None = option(
        None, "Folder of patch labels (bash scripts/label_patches.sh makes it), for objectives that learn from them."
    )
    patch_words: Literal["file", "online"] = option(
        "file",
        "file: labels as the folder stores them; online: computed in the run, with the folder's words and switches, "
        "by the tower that the folder names.",
    )
    patch_words_tower: str | None = option(
        None, "Tower whose labels the folder must hold, if not vision_tower (CLIP's labels for DINOv2's patches)."
    )
    patch_words_args: dict[str, Any] | str | None = option(
        None,
        "Switches of the labels, a mapping or JSON: n, sign, centring, source ... What label_patches.sh makes, and "
        "what the folder must then have been made with.",
    )
    feature_cache: str | None = option(
        None,
        "Folder for the features of the frozen vision tower: filled before training where they are missing, read by "
        "every run with the same tower, image geometry and images, which then opens no image in training. Refused for "
        "another tower, geometry or images (docs/performance.md).",
    )
    feature_cache_dtype: Literal["bfloat16", "float16", "float32", "int8"] = option(
        "bfloat16",
        "How feature_cache stores them; int8 has one scale a patch. The error against the tower's own features is "
        "printed and in metrics.json.",
    )
    eval_data_path: str | None = option(None, "Held-out LLaVA JSON or JSONL: caption loss before, during and after.")
    eval_image_folder: str | None = option(None, "Image folder of the held-out records. Default: image_folder.")
    eval_regions_path: str | None = option(None, "Regions file of the held-out images: alignment before and after.")
    vocabulary_path: str | None = option(None, "Object vocabulary, JSON {facet: [words]}, for hit@k and facet hits.")

    def __post_init__(self) -> None:
        self.patch_words_args = read_mapping("patch_words_args", self.patch_words_args)


@dataclass
class AlignmentArguments:
    """Which alignment objective, how strong, with which switches."""

    _argument_group_name = "alignment"

    alignment: str = option(
        "none",
        "Objective: a name (none, pat, sea, ...) or the dotted path of anybody's module[:Class]; several with a plus "
        "between them (pat+sea).",
    )
    alignment_weight: float = option(
        5.0, "Weight at full strength. 5 is this project's playground value, not a paper's."
    )
    alignment_schedule: Literal["linear", "constant"] | None = option(
        None,
        "linear ramps the weight from 0 to alignment_weight over the run (arXiv 2505.17316); constant does not. "
        "Default: the objective's own (pat linear, sea constant).",
    )
    alignment_args: dict[str, Any] | str | None = option(
        None,
        'Keywords of the objective: a mapping in YAML, JSON on the command line, as \'{"unit": "patch"}\'. Of several '
        'objectives: {"pat": {"unit": "patch"}, "sea": {"weight": 1.0, "schedule": "constant"}}.',
    )

    def __post_init__(self) -> None:
        self.alignment_args = read_mapping("alignment_args", self.alignment_args)

    def plan(self) -> dict[str, Part]:
        """The objectives of the run, by name, with the keywords and the weight of each (alignment/combined.py)."""
        return plan_objectives(self.alignment, self.alignment_args, self.alignment_weight, self.alignment_schedule)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own arguments with the published recipe as defaults, and what LLaVA adds to them."""

    _argument_group_name = "training (transformers' own flags included)"

    output_dir: str | None = option(
        None,
        "Where the run goes; {alignment} in it is replaced by the objective's name. Without the flag: the variable "
        "OUTPUT_DIR, else the YAML's value, else checkpoints/llava-v1.5-pretrain-{alignment}.",
    )
    num_train_epochs: float = option(1.0, f"Epochs ({_RECIPE}).")
    per_device_train_batch_size: int = option(
        32, f"Sequences per device and micro-step; 8 devices make 256 ({_RECIPE})."
    )
    per_device_eval_batch_size: int = option(4, f"Sequences per device in evaluation ({_RECIPE}).")
    global_batch_size: int | None = option(
        None, "Sequences per optimizer step on all devices; sets gradient_accumulation_steps. The recipe's is 256."
    )
    learning_rate: float = option(1e-3, f"Peak learning rate ({_RECIPE}).")
    weight_decay: float = option(0.0, f"Weight decay ({_RECIPE}).")
    warmup_steps: float = option(0.03, f"Steps of warm-up, or, below 1, their share ({_RECIPE}: warmup_ratio 0.03).")
    lr_scheduler_type: str = option("cosine", f"Learning rate schedule ({_RECIPE}).")
    optim: str = option("adamw_torch", "Optimizer (llava/train/train.py; betas, epsilon and clipping as transformers).")
    bf16: bool = option(True, f"bfloat16 ({_RECIPE}). Yields to an explicit --fp16 True.")
    logging_steps: float = option(1, f"Steps between log lines ({_RECIPE}).")
    save_strategy: str = option("steps", f"When checkpoint-N folders are written ({_RECIPE}).")
    save_steps: float = option(24000, f"Steps between checkpoints; the recipe saves at the end only ({_RECIPE}).")
    save_total_limit: int | None = option(1, f"Checkpoints kept ({_RECIPE}).")
    dataloader_num_workers: int = option(4, f"Processes that read images ({_RECIPE}).")
    model_max_length: int = option(
        2048, f"Positions of a sequence after image expansion; longer ones are cut ({_RECIPE})."
    )
    padding_free: bool = option(
        False,
        "Lay the sequences of a micro-batch end to end in the language model, without padding; each attends to itself "
        "alone. Same loss and gradient, less work (docs/performance.md). TRL's name.",
    )
    skip_bad_steps: int = option(
        0,
        "Steps that a run may leave out because their loss or gradient is not finite, or for max_loss_spike; they are "
        "counted in metrics.json. The next one ends the run, with the samples' ids.",
    )
    max_loss_spike: float | None = option(
        None,
        "A step is bad, too, when its loss is this many times the median of the last 64 steps' (3, say). Default: off.",
    )
    dump_bad_steps: int = option(
        1,
        "Bad steps of a start that leave OUT/bad_steps/step-N, for python -m llava_pat.replay: the batch, and as many "
        "bytes as the weights that train. The step that ends the run leaves one besides, unless this is 0.",
    )
    remove_unused_columns: bool = option(False, "False: batches are our own dictionaries (llava/train/train.py).")


class PretrainArguments(NamedTuple):
    """All arguments of a stage-1 run, complete and free of contradictions."""

    model: ModelArguments
    data: DataArguments
    alignment: AlignmentArguments
    training: TrainingArguments


def _check(arguments: PretrainArguments) -> None:
    check_pretrain(arguments)
    check(arguments)


PRETRAIN = Stage(
    name="stage 1",
    script="train/pretrain.py",
    description="Stage 1: train the projector, with an alignment objective or without.",
    kinds=(ModelArguments, DataArguments, AlignmentArguments, TrainingArguments),
    complete=PretrainArguments,
    check=_check,
    output_dir="checkpoints/llava-v1.5-pretrain-{alignment}",
    dropped={"freeze_backbone": "stage 1 always freezes the language model and the tower"},
    refused={
        "lora_enable": (("false",), "LoRA belongs to stage 2, train/finetune.py"),
        "bits": (("16",), "quantised base models belong to stage 2, train/finetune.py"),
        "freeze_mm_mlp_adapter": (("false",), "the projector is what stage 1 trains"),
        "group_by_modality_length": (("false",), "it belongs to stage 2, train/finetune.py"),
        "unfreeze_mm_vision_tower": (("false",), "stage 1 keeps the tower frozen"),
    },
)


def parse_pretrain(argv: Sequence[str] | None = None) -> PretrainArguments:
    """Read a stage-1 command line (see command_line.parse)."""
    return parse(argv, PRETRAIN)
