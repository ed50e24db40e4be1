"""In which order a stage-2 run sees its samples."""

from __future__ import annotations

from llava_pat.data.sampling import ModalityLengthSampler
from llava_pat.training.finetune_arguments import FinetuneTrainingArguments
from llava_pat.training.parts import Parts


def train_sampler(training: FinetuneTrainingArguments, parts: Parts) -> ModalityLengthSampler | None:
    """LLaVA's grouping by modality and length over all sequences of an optimizer step; None for a plain shuffle."""
    if not training.group_by_modality_length:
        return None
    batches = training.gradient_accumulation_steps * training.world_size
    return ModalityLengthSampler(
        parts.train.lengths(parts.model.num_patches),
        [bool(record.images) for record in parts.train.records],
        training.train_batch_size * batches,
        training.seed,
        even_batches=batches if training.padding_free else None,
    )
