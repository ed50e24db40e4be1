"""A run's YAML and flags, as training reads them -> what planning needs (planning.RunConfig)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from llava_pat.data.record_file import read_objects
from llava_pat.models.llava_config import language_config
from llava_pat.models.loading import tower_config, tower_image_size
from llava_pat.performance.planning import RunConfig
from llava_pat.performance.shapes import CONFIGS, Recipe, Shape
from llava_pat.performance.states import Sharing
from llava_pat.training.arguments import PretrainArguments, parse_pretrain
from llava_pat.training.consistency import read_plan
from llava_pat.training.finetune_arguments import FinetuneArguments, parse_finetune
from llava_pat.training.flags import ConfigError, Setting, read_argv, read_yaml
from llava_pat.training.parts import compute_dtype

# Assumptions: tokens of a usual caption, of the longest, and of a usual conversation, behind the image.
STAGE_1_TEXT, STAGE_1_MOST, STAGE_2_TEXT = 40, 128, 256
_NO_MACHINE = ("--use_cpu", "True", "--deepspeed", "", "--tf32", "False", "--report_to", "none")
_SAMPLES = {"blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_298}
"""Records of LLaVA's published files, for plans made where they are not."""


def read_run(
    config: Path, flags: Sequence[str], ranks: int, stage: int | None, text_tokens: int | None = None
) -> RunConfig:
    """config: a YAML of scripts/configs; flags override it, as in training. stage None: by its `version`.

    text_tokens: of a usual sequence. Raises ConfigError and ValueError for what cannot be read or planned.
    """
    settings = [*read_yaml(config), *read_argv(flags)]
    stage = _stage_of(settings, config) if stage is None else stage
    argv = ["--config", str(config), *flags, *_NO_MACHINE]
    arguments = parse_pretrain(argv) if stage == 1 else parse_finetune(argv)
    plan = _last(settings, "deepspeed")
    sharing = Sharing.of(read_plan(plan) if plan else None, ranks)
    shape = _shape(arguments)
    training = arguments.training
    patches = _patches(shape)
    room = training.model_max_length - patches - 1
    if room < 1:
        raise ConfigError(
            f"--model_max_length {training.model_max_length} has no room for text behind {patches} patches: "
            f"give at least {patches + 2}"
        )
    usual = min(room, text_tokens or (STAGE_1_TEXT if stage == 1 else STAGE_2_TEXT))
    most = min(room, max(usual, STAGE_1_MOST)) if stage == 1 else room
    per_gpu = training.per_device_train_batch_size
    global_batch = training.global_batch_size or per_gpu * training.gradient_accumulation_steps * ranks
    return RunConfig(
        name=config.stem,
        stage=stage,
        shape=shape,
        recipe=_recipe(arguments, plan is not None and plan != ""),
        sharing=sharing,
        micro_batch=per_gpu,
        global_batch=global_batch,
        most_text_tokens=most,
        usual_text_tokens=usual,
        patches=patches,
        samples=_samples(arguments.data.data_path, training.num_train_epochs, training.max_steps, global_batch),
    )


def _stage_of(settings: Sequence[Setting], config: Path) -> int:
    version = _last(settings, "version")
    if version is None:
        raise ConfigError(f"{config}: without `version` it could be of either stage: give --stage 1 or --stage 2")
    return 1 if version == "plain" else 2


def _last(settings: Sequence[Setting], name: str) -> str | None:
    values = [setting.values for setting in settings if setting.name == name]
    return " ".join(values[-1]) if values else None


def _shape(arguments: PretrainArguments | FinetuneArguments) -> Shape:
    model = arguments.model
    if model.model_name_or_path is None or model.vision_tower is None:
        raise ConfigError("a plan needs model_name_or_path and vision_tower, for the sizes of the model")
    side = None
    if model.vision_tower in CONFIGS:
        tower = CONFIGS[model.vision_tower]
    else:
        tower = tower_config(model.vision_tower)
        side = tower_image_size(model.vision_tower, tower)
    llm: PretrainedConfig = CONFIGS.get(model.model_name_or_path) or language_config(model.model_name_or_path)
    training = arguments.training
    return Shape(
        model.model_name_or_path, tower, llm, training.per_device_train_batch_size, STAGE_1_TEXT,
        compute_dtype(training), model.mm_projector_type, model.mm_vision_select_layer,
        model.mm_vision_select_feature, side,
    )  # fmt: skip


def _patches(shape: Shape) -> int:
    side = shape.tower.image_size if shape.image_size is None else shape.image_size
    return (side // shape.tower.patch_size) ** 2 + (shape.select_feature == "cls_patch")


def _recipe(arguments: PretrainArguments | FinetuneArguments, deepspeed: bool) -> Recipe:
    training, model = arguments.training, arguments.model
    common = {
        "dtype": compute_dtype(training),
        "masters": not deepspeed,
        "checkpointing": training.gradient_checkpointing,
        "padding_free": training.padding_free,
        "attention": "eager" if model.attn_implementation == "eager" else "sdpa",
    }
    if isinstance(arguments, PretrainArguments):
        return Recipe("projector", **common)
    adapter = arguments.adapter
    layers = -1 if model.mm_vision_tower_layers is None else model.mm_vision_tower_layers
    trains = "lora" if adapter.lora_enable else "projector" if model.freeze_backbone else "all"
    return Recipe(
        trains, **common, projector_trains=not model.freeze_mm_mlp_adapter,
        tower_layers=layers if model.unfreeze_mm_vision_tower else 0, lora_r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha, lora_dropout=adapter.lora_dropout, bits=adapter.bits,
        double_quant=adapter.double_quant,
    )  # fmt: skip


def _samples(data_path: str | None, epochs: float, max_steps: int, global_batch: int) -> int | None:
    if max_steps > 0:
        return max_steps * global_batch
    if data_path is None:
        return None
    file = Path(data_path)
    if file.is_file():
        return round(sum(1 for _ in read_objects(file)) * epochs)
    records = _SAMPLES.get(file.name)
    return None if records is None else round(records * epochs)
