"""TRL's SFTTrainer on transformers' model: its own training_step, with its defaults (gradient checkpointing on).

Its newer versions compute logits at supervised positions alone, as we do. TRL is not a dependency: `pip install trl
datasets` in an environment of its own.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from contestants.base import Task, Weights
from contestants.hf import TrainerSteps, build_hf
from llava_pat.performance.loading import byte_tokenizer


def trl(name: str, task: Task, weights: Weights, micro: int | None) -> TrainerSteps:
    folder = TemporaryDirectory()
    settings = SFTConfig(
        output_dir=folder.name, bf16=task.shape.dtype != torch.float32, use_cpu=task.device.type == "cpu",
        report_to="none", remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None,
    )  # fmt: skip
    example = {"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1]}
    trainer = SFTTrainer(
        model=build_hf(task, weights), args=settings, train_dataset=Dataset.from_list([example]),
        processing_class=byte_tokenizer(), data_collator=lambda samples: samples,
    )  # fmt: skip
    return TrainerSteps(name, task, trainer, folder, micro)
