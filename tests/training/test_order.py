"""The order of a stage-2 run: what its sampler is told, and what the trainer's loader makes of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

from llava_pat.training.order import train_sampler


def kinds(made: SimpleNamespace, epoch: int = 0) -> list[list[bool]]:
    """For each micro-batch of an epoch, which of its samples have images."""
    loader = made.trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    records = made.parts.train.records
    return [[bool(records[index].images) for index in batch["sample_index"].tolist()] for batch in loader]


def test_a_step_has_one_modality(make_finetuner) -> None:
    made = make_finetuner(per_device_train_batch_size=1, gradient_accumulation_steps=3)  # 9 with images, 3 without
    batches = kinds(made)
    steps = [sum(batches[at : at + 3], []) for at in range(0, 12, 3)]
    assert sorted(map(tuple, steps)) == [(False,) * 3] + [(True,) * 3] * 3
    assert kinds(made) == batches and any(kinds(made, epoch) != batches for epoch in range(1, 6))


def test_the_sampler_knows_the_step(make_finetuner) -> None:
    made = make_finetuner(per_device_train_batch_size=2, gradient_accumulation_steps=3, seed=5)
    sampler = train_sampler(made.arguments.training, made.parts)
    assert (sampler.megabatch_size, sampler.seed, len(sampler)) == (6, 5, 12)
    assert sampler.multimodal == [bool(record.images) for record in made.parts.train.records]


def test_batches_without_padding_are_dealt_evenly(make_finetuner) -> None:
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    made = make_finetuner(**sizes, padding_free=True)
    assert train_sampler(made.arguments.training, made.parts).even_batches == 3
    made = make_finetuner(**sizes)
    assert train_sampler(made.arguments.training, made.parts).even_batches is None


def test_lengths_grow_with_words_and_images(make_finetuner, world) -> None:
    made = make_finetuner()
    sampler = train_sampler(made.arguments.training, made.parts)
    records = json.loads((world.folder / "instruct.json").read_text())
    text, one, two = (records.index(record) for record in (records[2], records[5], records[3]))
    assert sampler.lengths[text] < sampler.lengths[one] < sampler.lengths[two]
    assert sampler.lengths[two] - sampler.lengths[one] > made.parts.model.num_patches / 2


def test_it_can_be_switched_off(make_finetuner) -> None:
    made = make_finetuner(group_by_modality_length=False, per_device_train_batch_size=3)
    assert train_sampler(made.arguments.training, made.parts) is None
    mixed = [len(set(batch)) == 2 for batch in kinds(made)]
    assert any(mixed), "a plain shuffle of this seed puts images and text together"


def test_the_last_steps_take_the_rest(make_finetuner) -> None:
    made = make_finetuner(per_device_train_batch_size=4)
    assert sorted(map(len, kinds(made))) == [4, 4, 4]
    assert sum(len(set(batch)) == 2 for batch in kinds(made)) == 1  # 9 = 4 + 4 + 1, and 3: the last is mixed
