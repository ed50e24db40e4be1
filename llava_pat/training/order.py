"""In which order a stage-2 run sees its samples."""

from __future__ import annotations

from llava_pat.data.sampling import ModalityLengthSampler
from llava_pat.training.finetune_arguments import FinetuneTrainingArguments
from llava_pat.training.parts import Parts
from llava_pat.types import Record


def train_sampler(training: FinetuneTrainingArguments, parts: Parts) -> ModalityLengthSampler | None:
    """LLaVA's grouping by modality and length over all sequences of an optimizer step; None for a plain shuffle."""
    if not training.group_by_modality_length:
        return None
    records = parts.train.records
    return ModalityLengthSampler(
        [_length(record, parts.model.num_patches) for record in records],
        [bool(record.images) for record in records],
        training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        training.seed,
    )


def _length(record: Record, num_patches: int) -> int:
    """Words and patches, as LLaVA counts: tokenising everything on every rank would cost minutes and sort no better."""
    return sum(len(turn.value.split()) for turn in record.turns) + num_patches * len(record.images)
