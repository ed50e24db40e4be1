"""Batched decoding against the plain loop (one forward of the whole sequence per new token) and transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from llava_pat.models.generate import Decoding, generate
from llava_pat.types import IMAGE_TOKEN_INDEX
from tests.models.families import FAMILIES, model_of

NEVER = 999  # outside the vocabulary


@torch.no_grad()
def by_hand(model, ids, patches, steps):
    ids = list(ids)
    for _ in range(steps):
        row = torch.tensor([ids])
        hidden = model.forward_hidden(row, torch.ones_like(row, dtype=torch.bool), patches)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    return ids[-steps:]


@torch.no_grad()
def encoded(model, images):
    return model.project(model.encode_images(torch.randn(images, 3, 28, 28) * 4))


def prompt(model, *parts):
    """Ids; None is an image."""
    return [i for part in parts for i in ([IMAGE_TOKEN_INDEX] * model.num_patches if part is None else [part])]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_one_prompt_equals_the_plain_loop(tiny_vlm, images):
    model = tiny_vlm().eval()
    patches = encoded(model, images)
    ids = prompt(model, 1, 7, *[None] * images, 9)
    expected = by_hand(model, ids, patches, 8)
    assert len(set(expected)) > 1 and NEVER not in expected
    shown = [list(range(images))]
    assert generate(model, [ids], shown, patches, max_new_tokens=8, end_ids=[NEVER]) == [expected]
    end = expected[3]
    until = expected[: expected.index(end)]
    assert generate(model, [ids], shown, patches, max_new_tokens=8, end_ids=[NEVER, end]) == [until]


@pytest.fixture
def mixed(tiny_vlm):
    """Prompts of several lengths: shared images, none, two, an image at the very end; and what each gets alone."""
    model = tiny_vlm().eval()
    patches = encoded(model, 3)
    prompts = [
        prompt(model, 1, 7, None, 9, 10, 11),
        prompt(model, 1, 7, None, 12),
        prompt(model, 1, 13),
        prompt(model, 1, 14, 15, 16, 17, 18, 19),
        prompt(model, 1, None, 8, None, 20, 21),
        prompt(model, 1, 7, None, 9, 10, 11),
        prompt(model, 1, 7, None, 23, 24, 25, 26),
        prompt(model, 1, 5, None, 6),
        prompt(model, 1, 5, None, 6),
    ]
    images = [[0], [0], [], [], [1, 2], [1], [0], [2], [2]]
    return model, prompts, images, patches


def test_a_batch_equals_its_rows_alone(mixed):
    model, prompts, images, patches = mixed
    alone = [by_hand(model, ids, patches[shown], 12) for ids, shown in zip(prompts, images, strict=True)]
    assert len({tuple(row) for row in alone}) >= 7
    assert generate(model, prompts, images, patches, max_new_tokens=12, end_ids=[NEVER]) == alone
    ends = [alone[0][2], alone[3][5], alone[4][0]]  # rows end at different steps, and are dropped
    cut = [row[: next((i for i, token in enumerate(row) if token in ends), 12)] for row in alone]
    assert len({len(row) for row in cut}) > 2
    assert generate(model, prompts, images, patches, max_new_tokens=12, end_ids=[NEVER, *ends]) == cut
    odd = generate(model, prompts, images, patches, max_new_tokens=12, end_ids=[NEVER], ended=lambda ids: ids[-1] % 2)
    assert odd == [row[: next((i + 1 for i, token in enumerate(row) if token % 2), 12)] for row in alone]


def test_prompts_that_end_in_an_image(tiny_vlm):
    model = tiny_vlm().eval()
    patches = encoded(model, 2)
    prompts, images = [prompt(model, 1, 5, None)] * 2 + [prompt(model, 1, None, 6)] * 2, [[0], [1], [1], [1]]
    alone = [by_hand(model, ids, patches[shown], 6) for ids, shown in zip(prompts, images, strict=True)]
    assert generate(model, prompts, images, patches, max_new_tokens=6, end_ids=[NEVER]) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_transformers_generate(family):
    """Sliding windows, scaled embeddings and transformed logits included; theirs answers each prompt alone."""
    model = model_of(FAMILIES[family])
    patches = torch.randn(2, 4, model.hidden_size)
    prompts = [[1, *[IMAGE_TOKEN_INDEX] * 4, 5, 6], [1, *[IMAGE_TOKEN_INDEX] * 4, 9], [1, 7, 8, 10, 11], [1, 12]]
    prompts.append([1, *[IMAGE_TOKEN_INDEX] * 4, 13, 14, 15])
    images = [[0], [0], [], [], [1]]
    expected = []
    for ids, shown in zip(prompts, images, strict=True):
        embeds = model.embed_sequence(torch.tensor([ids]), patches[shown])
        mask = torch.ones(1, len(ids), dtype=torch.int64)
        found = model.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=[NEVER],
            pad_token_id=0,
        )  # fmt: skip
        expected.append(found[0].tolist())
    assert len({tuple(row) for row in expected}) > 2
    assert generate(model, prompts, images, patches, max_new_tokens=10, end_ids=[NEVER]) == expected


def test_the_repetition_penalty_of_the_checkpoint_counts(mixed):
    model, prompts, images, patches = mixed
    plain = generate(model, prompts, images, patches, max_new_tokens=12, end_ids=[NEVER])
    model.llm.generation_config.repetition_penalty = 5.0
    found = generate(model, prompts, images, patches, max_new_tokens=12, end_ids=[NEVER])
    assert found != plain
    for ids, shown, row in zip(prompts, images, found, strict=True):
        embeds = model.embed_sequence(torch.tensor([ids]), patches[shown])
        theirs = model.llm.generate(
            inputs_embeds=embeds, attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False,
            eos_token_id=[NEVER], pad_token_id=0,
        )  # fmt: skip
        assert theirs[0].tolist() == row


def test_beams_equal_transformers_on_each_prompt_alone(mixed):
    model, prompts, images, patches = mixed
    end = generate(model, prompts, images, patches, max_new_tokens=6, end_ids=[NEVER])[0][2]
    found = generate(
        model, prompts, images, patches, max_new_tokens=6, end_ids=[NEVER, end], decoding=Decoding(num_beams=3)
    )
    for ids, shown, row in zip(prompts, images, found, strict=True):
        theirs = model.llm.generate(
            inputs_embeds=model.embed_sequence(torch.tensor([ids]), patches[shown]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            generation_config=GenerationConfig(
                max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=[NEVER, end], pad_token_id=0
            ),
        )[0].tolist()
        assert row == theirs[: next((i for i, token in enumerate(theirs) if token in (end, NEVER)), 6)]


def test_samples_belong_to_the_prompt_and_its_seed(mixed):
    model, prompts, images, patches = mixed
    warm = Decoding(temperature=1.0)

    def sample(which, seeds, decoding=warm):
        return generate(
            model, [prompts[i] for i in which], [images[i] for i in which], patches, max_new_tokens=6, end_ids=[NEVER],
            decoding=decoding, seeds=[seeds[i] for i in which],
        )  # fmt: skip

    seeds = [100 + i for i in range(9)]
    together = sample(range(9), seeds)
    assert [sample([i], seeds)[0] for i in range(9)] == together
    assert sample(range(9), [s + 1 for s in seeds]) != together
    greedy = generate(model, prompts, images, patches, max_new_tokens=6, end_ids=[NEVER])
    assert greedy != together
    assert sample(range(9), seeds, Decoding(temperature=1e-4)) == greedy
    assert sample(range(9), seeds, Decoding(temperature=1.0, top_p=1e-6)) == greedy


def test_the_sampler_draws_from_the_distribution():
    from llava_pat.models.generate import _Sampler

    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    drawn = _Sampler(Decoding(temperature=1.0), range(4000))(torch.zeros(4000, 0), scores, range(4000)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)  # 4 standard deviations
    cooler = Decoding(temperature=0.5, top_p=0.7)  # squared: .685, .247, ...: two tokens make up .7
    drawn = _Sampler(cooler, range(4000))(torch.zeros(4000, 0), scores, range(4000)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.25 / 0.34, 0.09 / 0.34, 0, 0]), atol=0.03)


def test_looks_at_the_image(tiny_vlm):
    model = tiny_vlm().eval()
    patches = encoded(model, 6)
    ids = prompt(model, 1, None, 9)
    answers = generate(model, [ids] * 6, [[i] for i in range(6)], patches, max_new_tokens=8, end_ids=[NEVER])
    assert len({tuple(row) for row in answers}) > 1


def test_refuses_what_does_not_fit(tiny_vlm):
    model = tiny_vlm().eval()
    none = torch.zeros(0, 4, model.hidden_size)
    with pytest.raises(ValueError, match="two ids in each"):
        generate(model, [[1, 2], [1]], [[], []], none, max_new_tokens=4, end_ids=[2])
    with pytest.raises(ValueError, match="4 image positions, but patch_embeds bring 0"):
        generate(model, [[IMAGE_TOKEN_INDEX] * 4 + [3]], [[]], none, max_new_tokens=4, end_ids=[2])
    for wrong in ({"temperature": -1}, {"top_p": 0.0}, {"num_beams": 0}):
        with pytest.raises(ValueError, match="out of range"):
            Decoding(**wrong)
    with pytest.raises(ValueError, match="beams that sample"):
        Decoding(temperature=0.2, num_beams=2)
