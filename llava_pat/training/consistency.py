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

from llava_pat.alignment import accepted_keywords, find_objective
from llava_pat.training.flags import ConfigError

if TYPE_CHECKING:
    from llava_pat.training.arguments import AlignmentArguments, DataArguments, PretrainArguments

DEFAULT_OUTPUT_DIR = "checkpoints/llava-v1.5-pretrain-{alignment}"


def resolve(values: MutableMapping[str, Any], strength: Mapping[str, int]) -> list[str]:
    """Complete `values` (flag name -> parsed value) in place.

    strength: 0 (absent) for a default, 1 for the YAML, 2 for the command line; where two disagree, the stronger stands.
    Returns one line for each value that was asked for and could not stand.
    """
    notes: list[str] = []
    _resolve_device(values, strength, notes)
    _resolve_precision(values, strength, notes)
    _resolve_batch(values, strength, notes)
    # The YAML's keywords are for the YAML's objective: `--alignment none` behind a PAT config must just work.
    if strength.get("alignment") == 2 and strength.get("alignment_args") == 1:
        notes.append(
            f"--alignment {values['alignment']}: the YAML's alignment_args were for its own objective: left out"
        )
        values["alignment_args"] = None
    _resolve_output(values, strength, notes)
    values["report_to"] = (values["report_to"] or "none").split(",")
    return notes


def _resolve_device(values: MutableMapping[str, Any], strength: Mapping[str, int], notes: list[str]) -> None:
    if not torch.accelerator.is_available():
        values["use_cpu"] = True
    launched = "WORLD_SIZE" in os.environ
    if values["deepspeed"] and launched:
        _check_plan(values["deepspeed"])
    if values["use_cpu"]:
        if values["deepspeed"] and not launched:
            notes.append(f"--deepspeed {values['deepspeed']}: one process on a CPU has nothing to share: left out")
            values["deepspeed"] = None
        return
    if not launched and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs but one process: start with torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} train/pretrain.py, deepspeed train/pretrain.py, or set CUDA_VISIBLE_DEVICES=0"
        )
    if not launched and values["deepspeed"]:
        raise ConfigError("--deepspeed needs a launcher: deepspeed train/pretrain.py, or torchrun train/pretrain.py")


def _check_plan(plan: str) -> None:
    """The DeepSpeed plan is there and is JSON."""
    try:
        # transformers takes the plan itself, too
        json.loads(plan if plan.startswith("{") else Path(plan).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--deepspeed {plan}: no such file (from {os.getcwd()})") from None
    except json.JSONDecodeError as error:
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


def _resolve_output(values: MutableMapping[str, Any], strength: Mapping[str, int], notes: list[str]) -> None:
    template = values["output_dir"] or DEFAULT_OUTPUT_DIR
    if strength.get("output_dir", 0) < 2 and os.environ.get("OUTPUT_DIR"):
        template = os.environ["OUTPUT_DIR"]
    objective = re.sub(r"[^\w.-]+", "-", values["alignment"].rpartition(".")[2])
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


def check(arguments: PretrainArguments) -> None:
    """Refuse contradictions. Raises ConfigError."""
    model, data, alignment, training = arguments
    missing = [
        f"--{name}"
        for part, name in (
            (model, "model_name_or_path"),
            (model, "vision_tower"),
            (data, "data_path"),
            (data, "image_folder"),
        )
        if vars(part)[name] is None
    ]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}: give them as flags, or a YAML that has them as --config")
    if model.mm_use_im_start_end or model.mm_use_im_patch_token:
        raise ConfigError(
            "--mm_use_im_start_end and --mm_use_im_patch_token must be False: they add tokens to the language model, "
            "which no LLaVA-1.5 model does"
        )
    if not model.tune_mm_mlp_adapter:
        raise ConfigError("--tune_mm_mlp_adapter False: stage 1 trains the projector and nothing else")
    _check_objective(data, alignment)
    if not 0 <= alignment.alignment_weight < float("inf"):
        raise ConfigError(f"--alignment_weight {alignment.alignment_weight}: expected a finite number >= 0")
    if data.eval_data_path is None:
        for name in ("eval_regions_path", "eval_image_folder"):
            if vars(data)[name] is not None:
                raise ConfigError(f"--{name} without --eval_data_path: there are no held-out records to measure on")
        if training.eval_strategy.value != "no":
            raise ConfigError(f"--eval_strategy {training.eval_strategy.value} needs --eval_data_path")
    if training.resume_from_checkpoint:
        raise ConfigError(
            "--resume_from_checkpoint: stage 1 goes on from the newest whole checkpoint in --output_dir by itself; give "
            "the same command again"
        )
    if training.load_best_model_at_end:
        raise ConfigError("--load_best_model_at_end: a stage-1 checkpoint holds the projector, not a whole model")
    if not 1 <= training.model_max_length:
        raise ConfigError(f"--model_max_length {training.model_max_length}: expected at least 1")
    for tracker in training.report_to:
        if tracker in ("wandb", "tensorboard") and importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"--report_to {tracker}: not installed; pip install {tracker}, or --report_to none")


def _check_objective(data: DataArguments, alignment: AlignmentArguments) -> None:
    try:
        objective = find_objective(alignment.alignment)
        accepted = accepted_keywords(objective)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--alignment {alignment.alignment}: {error}") from error
    if "schedule" in alignment.alignment_args:
        raise ConfigError("alignment_args has a schedule: give it as --alignment_schedule")
    for name in alignment.alignment_args:
        if name not in accepted:
            listed = ", ".join(f"{key}={value!r}" for key, value in accepted.items() if key != "schedule") or "none"
            raise ConfigError(
                f"alignment_args: --alignment {alignment.alignment} has no keyword {name!r}; "
                f"its keywords and defaults: {listed}"
            )
    if "regions" in objective.requires and data.regions_path is None:
        raise ConfigError(
            f"--alignment {alignment.alignment} needs regions: give --regions_path FILE, or choose --alignment none"
        )
