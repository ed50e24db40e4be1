"""The resolved run as a YAML that reproduces it: `python train/<stage>.py --config OUT/config.yaml`."""

from __future__ import annotations

import enum
import os
import platform
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import llava_pat
from llava_pat.training.arguments import PretrainArguments
from llava_pat.training.finetune_arguments import FinetuneArguments

# Properties of the machine or of one start, not of the run: a config.yaml from a laptop must not keep a GPU idle.
_NOT_THE_RUN = {"use_cpu", "tf32", "local_rank", "dataloader_pin_memory", "resume_from_checkpoint", "deepspeed_plugin"}
# transformers' defaults that are part of the recipe: written even though nobody set them.
_ALWAYS = {
    "seed",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "activation_checkpointing",
    "gradient_checkpointing",
}
# Filled in by transformers from other values, or with a value that cannot be read back.
_DERIVED = {"do_eval", "accelerator_config", "debug", "gradient_checkpointing_kwargs", "disable_tqdm", "logging_dir"}


def write_config(arguments: PretrainArguments | FinetuneArguments, path: str | Path) -> None:
    """Write every setting of ours, and those of transformers' that differ from its defaults; atomic.

    Reading the file back with the stage's parser gives equal arguments on the same machine.
    """
    script = "train/pretrain.py" if isinstance(arguments, PretrainArguments) else "train/finetune.py"
    lines = [
        f"# llava_pat {llava_pat.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"python {platform.python_version()}",
        f"# The resolved run; again: python {script} --config <this file>",
    ]
    for part in arguments:
        lines.append(f"# {type(part)._argument_group_name}")
        lines.append(yaml.safe_dump(_settings(part), sort_keys=False, allow_unicode=True, width=1000).rstrip())
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".tmp")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(aside, target)


def settings(arguments: PretrainArguments | FinetuneArguments) -> dict[str, Any]:
    """What `write_config` writes, by name."""
    return {name: value for part in arguments for name, value in _settings(part).items()}


def _settings(part: Any) -> dict[str, Any]:
    found = {}
    for item in fields(part):
        value = _plain(vars(part)[item.name])
        if value in (None, {}, []):
            continue
        if isinstance(part, transformers.TrainingArguments) and not _belongs(part, item.name, value):
            continue
        if item.name == "gradient_accumulation_steps" and part.global_batch_size is not None:
            continue  # follows from the global batch, on any number of processes
        found[item.name] = value
    return found


def _belongs(training: transformers.TrainingArguments, name: str, value: Any) -> bool:
    if name in _NOT_THE_RUN | _DERIVED:
        return False
    if name.startswith("gradient_checkpointing") and "activation_checkpointing" in vars(training):
        return False  # transformers mirrors the old name of activation_checkpointing
    inherited = {item.name: item for item in fields(transformers.TrainingArguments)}
    ours = {declared for kind in type(training).__mro__ if kind.__module__.startswith("llava_pat.")
            for declared in kind.__annotations__}  # fmt: skip
    if name in _ALWAYS or name in ours:
        return True
    default = inherited[name].default
    default = inherited[name].default_factory() if default is MISSING else default
    return value != _plain(default)


def _plain(value: Any) -> Any:
    """Enums and containers as YAML can hold them."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
