from __future__ import annotations

import random

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader

from llava_pat.data.sampling import ModalityLengthSampler

WORLD, BATCH, STEPS = 2, 4, 3
MEGABATCH = WORLD * BATCH * STEPS


@pytest.fixture(scope="module")
def samples():
    """500 multimodal and 100 text-only samples; lengths as scattered as those of conversations."""
    draw = random.Random(0)
    multimodal = [draw.random() < 0.8 for _ in range(610)]
    lengths = [int(draw.lognormvariate(4, 1)) + 100 * has_image + 1 for has_image in multimodal]
    return lengths, multimodal


def build(samples, seed=3, megabatch=MEGABATCH):
    return ModalityLengthSampler(*samples, megabatch, seed)


def megabatches(order, size=MEGABATCH):
    return [order[at : at + size] for at in range(0, len(order), size)]


def padding(order, lengths, batch=BATCH):
    batches = megabatches(order, batch)
    return sum(max(lengths[i] for i in b) * len(b) for b in batches) / sum(lengths) - 1


def test_every_sample_once_and_one_modality_per_step(samples):
    lengths, multimodal = samples
    sampler = build(samples)
    order = list(sampler)
    assert len(sampler) == len(order) and sorted(order) == list(range(len(lengths)))
    pure = sum(multimodal) // MEGABATCH + (len(lengths) - sum(multimodal)) // MEGABATCH
    steps = megabatches(order)
    assert len(steps) - 2 <= pure < len(steps), "only the rests of the two modalities may share a step"
    modalities = [{multimodal[index] for index in step} for step in steps[:pure]]
    assert {frozenset(found) for found in modalities} == {frozenset({True}), frozenset({False})}
    switches = sum(one != other for one, other in zip(modalities, modalities[1:], strict=False))
    assert switches > 2, "the modalities are shuffled, not one after the other"
    for step in steps[:pure]:
        assert [lengths[i] for i in step] == sorted((lengths[i] for i in step), reverse=True)


def test_less_padding_than_random_and_than_llavas_even_chunks(samples):
    lengths, multimodal = samples
    shuffled = random.Random(1).sample(range(len(lengths)), len(lengths))
    grouped = padding(list(build(samples)), lengths)
    assert grouped < 0.5 * padding(shuffled, lengths)
    even = []  # LLaVA's: the same megabatches, each sample in turn to the batch that is shortest so far
    for step in megabatches(list(build(samples))):
        batches = [[] for _ in range(WORLD * STEPS)]
        for index in step:
            open_ = [b for b in batches if len(b) < BATCH]
            min(open_, key=lambda b: sum(lengths[i] for i in b)).append(index)
        even += [i for b in batches for i in b]
    assert grouped < padding(even, lengths)


def test_batches_without_padding_are_of_even_lengths(samples):
    """The same steps; inside them every batch takes as many positions as the next."""
    lengths, multimodal = samples
    even = list(ModalityLengthSampler(*samples, MEGABATCH, 3, even_batches=WORLD * STEPS))
    whole = sum(multimodal) // MEGABATCH + (len(lengths) - sum(multimodal)) // MEGABATCH
    slowest, mean, before = 0, 0.0, 0
    for ours, theirs in zip(megabatches(even)[:whole], megabatches(list(build(samples))), strict=False):
        assert sorted(ours) == sorted(theirs) and ours != theirs
        totals, grouped = ([sum(lengths[i] for i in b) for b in megabatches(s, BATCH)] for s in (ours, theirs))
        slowest, mean, before = slowest + max(totals), mean + sum(totals) / len(totals), before + max(grouped)
    assert slowest < 1.2 * mean < 0.6 * before
    assert even[whole * MEGABATCH :] == list(build(samples))[whole * MEGABATCH :]


def test_dealing_by_hand():
    """9 | 8 | 5 to the second, which has less | 4 to the first: 9 + 4 and 8 + 5."""
    sampler = ModalityLengthSampler([4, 9, 5, 8], [True] * 4, 4, 0, even_batches=2)
    assert list(sampler) == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="even_batches is 3: a megabatch of 4 is not cut into that many"):
        ModalityLengthSampler([4, 9, 5, 8], [True] * 4, 4, 0, even_batches=3)


def test_order_follows_from_seed_and_epoch_alone(samples):
    torch.manual_seed(0)
    first, same = build(samples), build(samples)
    one = list(first)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(same) == one and list(first) == one
    assert torch.equal(torch.get_rng_state(), state), "the training's random state is not drawn from"
    first.set_epoch(1)
    assert list(first) != one and sorted(first) == sorted(one)
    same.set_epoch(1)
    assert list(first) == list(same)
    assert list(build(samples, seed=4)) != one


@pytest.mark.parametrize("modality", [True, False])
@pytest.mark.parametrize("count", [0, 5, MEGABATCH, MEGABATCH + 1])
def test_one_modality_and_small_sets(modality, count):
    order = list(ModalityLengthSampler([7] * count, [modality] * count, MEGABATCH, 0))
    assert sorted(order) == list(range(count))


def test_refuses_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="2 lengths, but 1 samples"):
        ModalityLengthSampler([1, 2], [True], 4, 0)
    with pytest.raises(ValueError, match="megabatch_size is 0"):
        ModalityLengthSampler([1], [True], 0, 0)


def prepared(samples, rank, world=WORLD):
    """The loader as accelerate prepares it on one rank (without a process group), and as the docstring asks for."""
    sampler = build(samples)
    batches = BatchSampler(sampler, BATCH, drop_last=False)
    if world > 1:
        batches = BatchSamplerShard(batches, world, rank)
    loader = DataLoaderShard(range(len(sampler)), batch_sampler=batches)
    loader.set_sampler(sampler)
    return loader


def batches_of(loader, epoch):
    loader.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


def test_ranks_see_one_step_of_one_modality(samples):
    _, multimodal = samples
    ranks = [batches_of(prepared(samples, rank), 0) for rank in range(WORLD)]
    order = list(build(samples))
    for step, expected in enumerate(megabatches(order)[:-2]):
        seen = [i for at in range(step * STEPS, (step + 1) * STEPS) for rank in ranks for i in rank[at]]
        assert seen == expected and len({multimodal[i] for i in seen}) == 1


@pytest.mark.parametrize("world", [1, WORLD])
@pytest.mark.parametrize("epoch", [0, 1])
def test_resuming_by_skipping_gives_the_rest_of_the_epoch(samples, world, epoch):
    for rank in range(world):
        whole = batches_of(prepared(samples, rank, world), epoch)
        fresh = prepared(samples, rank, world)  # a new process: it knows the epoch and the number of batches
        assert batches_of(skip_first_batches(fresh, 10), epoch) == whole[10:]


def test_the_loader_of_one_process_is_a_plain_one(samples):
    loader = DataLoader(range(len(samples[0])), batch_size=BATCH, sampler=build(samples))
    assert [i for batch in loader for i in batch.tolist()] == list(build(samples))
