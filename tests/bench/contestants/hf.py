"""LLaVA's recipe as anybody would run it on transformers: LlavaForConditionalGeneration with its own loss.

By Trainer's own training_step: padded batches, logits at all positions, gradient checkpointing on. Dtypes and optimizer
are ours, so that losses can be compared: frozen weights in bf16, what trains in fp32 under autocast (--bf16).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments

from contestants.base import LEARNING_RATE, LORA, MAX_GRAD_NORM, Sample, Task, Weights, timed, with_memory
from contestants.ours import take
from llava_pat.models.checkpointing import enable_gradient_checkpointing
from llava_pat.performance.made_up import made_up_micro_batches
from llava_pat.performance.shapes import Recipe, build_task
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

_LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class TrainerSteps:
    """Steps of a transformers Trainer: its own training_step on each micro-batch, then clipping and AdamW."""

    def __init__(self, name: str, task: Task, trainer: Trainer, folder: TemporaryDirectory, micro: int | None) -> None:
        self.name, self.device = name, task.device
        self.trainer, self.folder = trainer, folder
        self.trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        # As Trainer does before the first step: from here on the model's forward is under autocast.
        self.model, self.optimizer = trainer.accelerator.prepare(
            trainer.model.train(), torch.optim.AdamW(self.trained, lr=LEARNING_RATE)
        )
        if trainer.args.gradient_checkpointing:
            enable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)
        self.batches = hf_batches(task, micro)
        count = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in self.batches)
        self.supervised = torch.tensor(count, device=task.device)

    def step(self) -> Sample:
        return timed(self._step, self.device)

    def measure_memory(self) -> Sample:
        return with_memory(self._step, self.device)

    def _step(self) -> Tensor:
        losses = [self.trainer.training_step(self.model, dict(batch), self.supervised) for batch in self.batches]
        torch.nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()

    def close(self) -> None:
        self.folder.cleanup()
        del self.trainer, self.model, self.optimizer


def hugging_face(name: str, task: Task, weights: Weights, micro: int | None, checkpointing: bool) -> TrainerSteps:
    """checkpointing False: the same without it, which shows what it costs."""
    folder = TemporaryDirectory()
    settings = TrainingArguments(
        output_dir=folder.name, bf16=task.shape.dtype != torch.float32, use_cpu=task.device.type == "cpu",
        report_to="none", remove_unused_columns=False, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    return TrainerSteps(name, task, Trainer(build_hf(task, weights), settings), folder, micro)


def build_hf(task: Task, weights: Weights) -> torch.nn.Module:
    """With what trains unfrozen; LoRA by peft where asked for."""
    shape = task.shape
    config = LlavaConfig(
        vision_config=copy.deepcopy(shape.tower),
        text_config=copy.deepcopy(shape.llm),
        image_token_index=image_token(task),
        vision_feature_layer=shape.select_layer,
        vision_feature_select_strategy="default",
    )
    with task.device:
        model = LlavaForConditionalGeneration._from_config(config, dtype=shape.dtype, attn_implementation="sdpa")
    model.requires_grad_(False)
    parts = model.model
    parts.multi_modal_projector.float().requires_grad_(True)
    if task.trains == "all":
        parts.language_model.float().requires_grad_(True)
        model.lm_head.float().requires_grad_(True)
    take(parts.vision_tower, weights.tower)
    take(parts.language_model, {k.removeprefix("model."): v for k, v in weights.llm.items() if k != "lm_head.weight"})
    take(model.lm_head, {"weight": weights.llm["lm_head.weight"]})
    renamed = {"0.": "linear_1.", "2.": "linear_2."}
    take(parts.multi_modal_projector, {renamed[key[:2]] + key[2:]: value for key, value in weights.projector.items()})
    if task.trains == "lora":
        model = get_peft_model(model, LoraConfig(**LORA, target_modules=_LORA_TARGETS, task_type="CAUSAL_LM"))
        parts.multi_modal_projector.requires_grad_(True)
    return model


def hf_batches(task: Task, micro_batch: int | None) -> list[dict[str, Tensor]]:
    """The made-up sequences in transformers' words: every image position is the image token."""
    model = build_task(task.shape, Recipe("projector", task.shape.dtype), "meta").model
    size = task.sequences if micro_batch is None else micro_batch
    batches = made_up_micro_batches(model, task.sequences, size, task.text_tokens, uneven=task.uneven)
    return [_in_their_words(batch, task) for batch in batches]


def _in_their_words(batch: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    renamed = {
        "input_ids": torch.where(ids == IMAGE_TOKEN_INDEX, image_token(task), ids),
        "attention_mask": batch["attention_mask"].long(),
        "pixel_values": batch["pixel_values"].to(task.shape.dtype),
        "labels": batch["labels"],
    }
    return {name: value.to(task.device) for name, value in renamed.items()}


def image_token(task: Task) -> int:
    return task.shape.llm.vocab_size - 1
