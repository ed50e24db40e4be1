"""What follows from the arguments and the machine together, and which combinations cannot be run.

`resolve` fills in what depends on the machine or on other arguments; `check` refuses contradictions. Both run before
any model or data is touched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from llava_pat.alignment import requirements
from llava_pat.training.flags import ConfigError

if TYPE_CHECKING:
    from llava_pat.training.arguments import AlignmentArguments, DataArguments, PretrainArguments
    from llava_pat.training.finetune_arguments import (
        AdapterArguments,
        FinetuneArguments,
        FinetuneModelArguments,
        FinetuneTrainingArguments,
    )

# In the names of transformers' optimizers that bitsandbytes has (those with "torch" in them are torchao's).
_BITSANDBYTES = ("bnb", "8bit", "paged", "ademamix", "lion")


def resolve(values: MutableMapping[str, Any], strength: Mapping[str, int], output_dir: str, script: str) -> list[str]:
    """Complete `values` (flag name -> parsed value) in place.

    strength: 0 (absent) for a default, 1 for the YAML, 2 for the command line; where two disagree, the stronger stands.
    output_dir: without a flag, a YAML and the variable OUTPUT_DIR. script: the entry point, for messages.
    Returns one line for each value that was asked for and could not stand.
    """
    notes: list[str] = []
    _resolve_device(values, script, notes)
    _resolve_precision(values, strength, notes)
    _resolve_batch(values, strength, notes)
    # The YAML's keywords are for the YAML's objective: `--alignment none` behind a PAT config must just work.
    if strength.get("alignment") == 2 and strength.get("alignment_args") == 1:
        notes.append(
            f"--alignment {values['alignment']}: the YAML's alignment_args were for its own objective: left out"
        )
        values["alignment_args"] = None
    _resolve_output(values, strength, output_dir, notes)
    values["report_to"] = (values["report_to"] or "none").split(",")
    return notes


def _resolve_device(values: MutableMapping[str, Any], script: str, notes: list[str]) -> None:
    if not torch.accelerator.is_available():
        values["use_cpu"] = True
    launched = "WORLD_SIZE" in os.environ
    if values["deepspeed"] and launched:
        read_plan(values["deepspeed"])
    if values["use_cpu"]:
        if values["deepspeed"] and not launched:
            notes.append(f"--deepspeed {values['deepspeed']}: one process on a CPU has nothing to share: left out")
            values["deepspeed"] = None
        return
    if not launched and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs but one process: start with torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} {script}, deepspeed {script}, or set CUDA_VISIBLE_DEVICES=0"
        )
    if not launched and values["deepspeed"]:
        raise ConfigError(f"--deepspeed needs a launcher: deepspeed {script}, or torchrun {script}")


def read_plan(plan: str) -> dict[str, Any]:
    """The DeepSpeed plan of a file, or of its text, which transformers takes too. ConfigError when there is none."""
    try:
        return json.loads(plan if plan.startswith("{") else Path(plan).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--deepspeed {plan}: no such file (from {os.getcwd()})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--deepspeed {plan}: not valid JSON: {error}") from None


def _resolve_precision(values: MutableMapping[str, Any], strength: Mapping[str, int], notes: list[str]) -> None:
    if values["fp16"] and values["bf16"] and strength.get("fp16", 0) != strength.get("bf16", 0):
        weaker = "bf16" if strength.get("fp16", 0) > strength.get("bf16", 0) else "fp16"
        values[weaker] = False
        if strength.get(weaker):
            notes.append(f"--{weaker} True of the YAML yields to the command line's precision")
    if values["fp16"] and values["bf16"]:
        raise ConfigError("--fp16 True and --bf16 True contradict each other: choose one")
    if values["fp16"] and values["use_cpu"]:
        raise ConfigError("--fp16 True needs a GPU: on a CPU use --bf16 True, or --fp16 False --bf16 False for fp32")
    if values["bf16"] and torch.cuda.is_available() and not values["use_cpu"] and not is_torch_bf16_gpu_available():
        raise ConfigError(f"{torch.cuda.get_device_name()} has no bfloat16: use --bf16 False --fp16 True")
    tf32_here = is_torch_tf32_available() and not values["use_cpu"]
    if values["tf32"] and not tf32_here:
        notes.append(f"--tf32 True: {'a CPU' if values['use_cpu'] else 'this GPU'} has no TF32: off")
        values["tf32"] = None
    elif values["tf32"] is None and tf32_here:
        values["tf32"] = True  # the recipe's value, where it exists


def _resolve_batch(values: MutableMapping[str, Any], strength: Mapping[str, int], notes: list[str]) -> None:
    wanted = values["global_batch_size"]
    if wanted is None:
        return
    per_step = values["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", "1"))
    asked = values["gradient_accumulation_steps"]
    if strength.get("gradient_accumulation_steps", 0) > strength.get("global_batch_size", 0):
        values["global_batch_size"] = per_step * asked
        if values["global_batch_size"] != wanted:
            notes.append(
                f"--gradient_accumulation_steps {asked} changes the global batch from {wanted} to {per_step * asked}"
            )
        return
    if wanted % per_step:
        raise ConfigError(
            f"global_batch_size {wanted} is no multiple of {per_step}, which is per_device_train_batch_size "
            f"{values['per_device_train_batch_size']} on all processes: change one of them"
        )
    if (
        strength.get("gradient_accumulation_steps", 0) == strength.get("global_batch_size", 0)
        and wanted != per_step * asked
    ):
        raise ConfigError(
            f"global_batch_size {wanted} and gradient_accumulation_steps {asked} (x {per_step} = {per_step * asked}) "
            "contradict each other: leave one out"
        )
    values["gradient_accumulation_steps"] = wanted // per_step


def _resolve_output(
    values: MutableMapping[str, Any], strength: Mapping[str, int], output_dir: str, notes: list[str]
) -> None:
    template = values["output_dir"] or output_dir
    if strength.get("output_dir", 0) < 2 and os.environ.get("OUTPUT_DIR"):
        template = os.environ["OUTPUT_DIR"]
    objective = re.sub(r"[^\w.-]+", "-", "+".join(path.rpartition(".")[2] for path in values["alignment"].split("+")))
    values["output_dir"] = template.replace("{alignment}", objective)
    name = Path(values["output_dir"]).name
    if values["run_name"] is None:
        values["run_name"] = name
    # LLaVA's evaluation reads meaning into folder names (llava/model/builder.py, llava/eval/model_vqa_loader.py).
    if "plain" in name.lower():
        notes.append(
            f"output_dir {name!r} contains 'plain': LLaVA's evaluation then asks for a template that does not exist"
        )
    elif "llava" not in name.lower():
        notes.append(
            f"output_dir {name!r} does not contain 'llava': LLaVA's own loader will not know it for one of its models"
        )


def check(arguments: PretrainArguments | FinetuneArguments) -> None:
    """Refuse what neither stage can run. Raises ConfigError."""
    model, data, alignment, training = arguments.model, arguments.data, arguments.alignment, arguments.training
    refuse_missing((model, "model_name_or_path"), (data, "data_path"), (data, "image_folder"))
    if model.mm_use_im_start_end or model.mm_use_im_patch_token:
        raise ConfigError(
            "--mm_use_im_start_end and --mm_use_im_patch_token must be False: they add tokens to the language model, "
            "which no LLaVA-1.5 model does"
        )
    if not 0 <= alignment.alignment_weight < float("inf"):
        raise ConfigError(f"--alignment_weight {alignment.alignment_weight}: expected a finite number >= 0")
    _check_objective(data, alignment)
    if data.feature_cache is not None and data.patch_words == "online" and data.patch_words_path is not None:
        raise ConfigError(
            "--feature_cache with --patch_words online: labels are computed from pixels, which are not read then; take "
            "them from files (--patch_words file), or leave --feature_cache out"
        )
    if not 0 <= data.max_bad_records <= 1:
        raise ConfigError(f"--max_bad_records {data.max_bad_records}: expected a share, 0 to 1")
    if not 0 <= data.max_missing < float("inf"):
        raise ConfigError(f"--max_missing {data.max_missing}: expected a share below 1, or a number of images")
    if data.eval_data_path is None:
        for name in ("eval_regions_path", "eval_image_folder"):
            if vars(data)[name] is not None:
                raise ConfigError(f"--{name} without --eval_data_path: there are no held-out records to measure on")
        if training.eval_strategy.value != "no":
            raise ConfigError(f"--eval_strategy {training.eval_strategy.value} needs --eval_data_path")
    if training.resume_from_checkpoint:
        raise ConfigError(
            "--resume_from_checkpoint: a run goes on from the newest whole checkpoint in --output_dir by itself; give "
            "the same command again"
        )
    if training.load_best_model_at_end:
        raise ConfigError("--load_best_model_at_end: not supported, the last weights are what the recipe keeps")
    for name in ("skip_bad_steps", "dump_bad_steps"):
        if vars(training)[name] < 0:
            raise ConfigError(f"--{name} {vars(training)[name]}: expected a number of steps, 0 or more")
    if training.max_loss_spike is not None and not 1 < training.max_loss_spike < float("inf"):
        raise ConfigError(f"--max_loss_spike {training.max_loss_spike}: expected a factor above 1, such as 3")
    if not 1 <= training.model_max_length:
        raise ConfigError(f"--model_max_length {training.model_max_length}: expected at least 1")
    for tracker in training.report_to:
        if tracker in ("wandb", "tensorboard") and importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"--report_to {tracker}: not installed; pip install {tracker}, or --report_to none")


def check_pretrain(arguments: PretrainArguments) -> None:
    """Refuse what stage 1 cannot run."""
    model, data = arguments.model, arguments.data
    refuse_missing((model, "model_name_or_path"), (model, "vision_tower"), (data, "data_path"), (data, "image_folder"))
    if not model.tune_mm_mlp_adapter:
        raise ConfigError("--tune_mm_mlp_adapter False: stage 1 trains the projector and nothing else")


def check_finetune(arguments: FinetuneArguments) -> None:
    """Refuse what stage 2 cannot run."""
    model, adapter, training = arguments.model, arguments.adapter, arguments.training
    if model.tune_mm_mlp_adapter:
        raise ConfigError(
            "--tune_mm_mlp_adapter True is stage 1: use train/pretrain.py, or --freeze_backbone True here"
        )
    if model.freeze_backbone and model.freeze_mm_mlp_adapter and not model.unfreeze_mm_vision_tower:
        raise ConfigError("--freeze_backbone True and --freeze_mm_mlp_adapter True: nothing is left to train")
    if model.unfreeze_mm_vision_tower and arguments.data.feature_cache is not None:
        raise ConfigError(
            "--feature_cache with --unfreeze_mm_vision_tower True: a tower that trains gives other features every "
            "step; leave one of the two out"
        )
    if model.mm_vision_tower_layers is not None:
        if not model.unfreeze_mm_vision_tower:
            raise ConfigError("--mm_vision_tower_layers needs --unfreeze_mm_vision_tower True")
        if model.mm_vision_tower_layers < 1:
            raise ConfigError(f"--mm_vision_tower_layers {model.mm_vision_tower_layers}: expected at least 1")
    rates = {
        "mm_projector_lr": not model.freeze_mm_mlp_adapter,
        "mm_vision_tower_lr": model.unfreeze_mm_vision_tower,
    }
    for name, trains in rates.items():
        rate = vars(training)[name]
        if rate is not None and not trains:
            raise ConfigError(f"--{name} {rate}: that part is frozen; leave the flag out, or train the part")
        if rate is not None and not 0 <= rate < float("inf"):
            raise ConfigError(f"--{name} {rate}: expected a finite number >= 0")
    plan = read_plan(training.deepspeed) if isinstance(training.deepspeed, str) else {}
    if "optimizer" in plan and any(vars(training)[name] is not None for name in rates):
        raise ConfigError(
            f"--deepspeed {training.deepspeed} has an optimizer of its own, which knows one learning rate: take its "
            f"'optimizer' and 'scheduler' out (as in scripts/zero3_offload.json), or leave out {' and '.join(rates)}"
        )
    _check_adapter(model, adapter, training, plan)


def _check_adapter(
    model: FinetuneModelArguments, adapter: AdapterArguments, training: FinetuneTrainingArguments, plan: Mapping
) -> None:
    if adapter.lora_enable and model.freeze_backbone:
        raise ConfigError("--lora_enable True and --freeze_backbone True contradict each other")
    if adapter.lora_enable and model.unfreeze_mm_vision_tower:
        raise ConfigError(
            "--lora_enable True with --unfreeze_mm_vision_tower True: LLaVA's LoRA folder has no place for a trained "
            "tower"
        )
    if adapter.lora_enable and adapter.lora_r < 1:
        raise ConfigError(f"--lora_r {adapter.lora_r}: expected at least 1")
    if adapter.bits not in (4, 8, 16):
        raise ConfigError(f"--bits {adapter.bits}: expected 4, 8 or 16")
    if adapter.bits < 16 and not adapter.lora_enable:
        raise ConfigError(
            f"--bits {adapter.bits} needs --lora_enable True: quantised weights cannot be trained themselves"
        )
    if adapter.bits < 16 and plan.get("zero_optimization", {}).get("stage") == 3:
        raise ConfigError(
            f"--bits {adapter.bits} with ZeRO-3: quantised weights cannot be sharded; use scripts/zero2.json"
        )
    optimizer = training.optim.value
    by_bitsandbytes = "torch" not in optimizer and any(mark in optimizer for mark in _BITSANDBYTES)
    if by_bitsandbytes or adapter.bits < 16:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "bitsandbytes is not installed: pip install 'llava-pat[qlora]', or pip install bitsandbytes"
            )


def refuse_missing(*needed: tuple[Any, str]) -> None:
    """ConfigError that names every flag of (arguments, name) pairs without a value."""
    missing = [f"--{name}" for part, name in needed if vars(part)[name] is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}: give them as flags, or a YAML that has them as --config")


def _check_objective(data: DataArguments, alignment: AlignmentArguments) -> None:
    try:
        needed = requirements(alignment.plan())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--alignment {alignment.alignment}: {error}") from error
    if "regions" in needed and data.regions_path is None:
        raise ConfigError(
            f"--alignment {alignment.alignment} needs regions: give --regions_path FILE, or choose --alignment none"
        )
    if "patch_words" in needed and data.patch_words_path is None:
        raise ConfigError(
            f"--alignment {alignment.alignment} needs labels of patches: make them with `bash "
            "scripts/label_patches.sh` and give --patch_words_path FOLDER, or choose --alignment none"
        )
    if "patch_words" in needed and data.patch_words == "online" and data.missing == "blank":
        raise ConfigError(
            "--missing blank with --patch_words online: an empty image would be labelled with words; use --missing skip"
        )
