"""The start-up check of a run's data: once, on the first rank; all ranks leave out the same records."""

from __future__ import annotations

import sys

import torch.distributed as dist

from llava_pat.data.dataset import LlavaDataset
from llava_pat.training.arguments import DataArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.parts import Parts


def check_data(parts: Parts, data: DataArguments, main: bool) -> Parts:
    """`parts` without the records that cannot be trained on; prints what the data hold.

    Raises ConfigError for patch labels of another tower, DataError for the first bad record, or with --bad_records
    skip ConfigError when too many would be left out.
    """
    if parts.words is not None and main:
        parts.words.check_tower()
        print(parts.words, flush=True)
    train = _check("training", parts.train, parts, data, main)
    held_out = None if parts.held_out is None else _check("held-out", parts.held_out, parts, data, main)
    return parts._replace(train=train, held_out=held_out)


def _check(name: str, dataset: LlavaDataset, parts: Parts, data: DataArguments, main: bool) -> LlavaDataset:
    unusable: list[int] = []
    if main:
        report = dataset.check(parts.model.num_patches, progress=sys.stderr.isatty(), on_bad=data.bad_records)
        print(f"{name} data: {report}", flush=True)
        unusable = [skipped.index for skipped in report.unusable]
    if dist.is_available() and dist.is_initialized():
        shared = [unusable]
        dist.broadcast_object_list(shared)
        unusable = shared[0]
    left_out = len(unusable) + len(dataset.records.skipped)
    total = len(dataset) + len(dataset.records.skipped)
    if left_out > data.max_bad_records * total:
        raise ConfigError(
            f"{name} data: {left_out} of {total} records cannot be trained on, more than --max_bad_records "
            f"{data.max_bad_records}; the first reasons are above. Mend the file, or raise the share"
        )
    return dataset.without(unusable) if unusable else dataset
