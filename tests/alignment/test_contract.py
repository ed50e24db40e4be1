"""The contract that every available objective keeps, whatever it computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llava_pat.alignment import available, build_objective
from llava_pat.types import AlignmentInputs, PatchRegions, PatchWords

IMAGES, N, DV, D, L, VOCABULARY = 4, 9, 6, 8, 3, 20

VARIANTS = [
    *((name, {}) for name in available()),
    *(("pat", {"unit": "patch", "multi_label": kind, "min_coverage": 0.4}) for kind in ("pairs", "mean", "best")),
    ("pat", {"labels": "clip"}),
    ("pat", {"labels": "clip", "unit": "patch", "multi_label": "mean", "top_n": 1}),
    ("sea", {"labels": "regions", "window": 0, "sampling": "best", "dedup": "mask", "learn_temperature": False}),
    ("sea", {"sampling": "mean", "dedup": "mask", "loss": "sdm", "init_log_scale": 2.0}),
]
every = pytest.mark.parametrize("name, keywords", VARIANTS, ids=lambda value: str(value))


class Words:
    """A frozen embedding that counts its calls."""

    def __init__(self) -> None:
        self.table = torch.randn(VOCABULARY, D)
        self.calls = 0

    def __call__(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return self.table[ids]


def build(name: str, keywords: dict):
    return build_objective(name, hidden_size=D, vision_width=DV, **keywords)


def make_inputs() -> AlignmentInputs:
    torch.manual_seed(1)
    image = torch.tensor([2, 0, 0, 3, 2])  # image 1 has no label
    coverage = torch.rand(5, N) * (torch.rand(5, N) > 0.5)
    coverage[:, 4] = 0.9
    regions = PatchRegions(coverage, image, torch.randint(1, VOCABULARY, (5, L)), torch.ones(5, L, dtype=torch.bool))
    regions.label_mask[1, 1:] = False
    captions = torch.randint(1, VOCABULARY, (IMAGES, L))
    embeds = torch.randn(IMAGES, N, D).requires_grad_()
    mask = torch.ones_like(captions).bool()
    return AlignmentInputs(
        torch.randn(IMAGES, N, DV), embeds, Words(), captions, mask, regions, make_words(), step=3, total_steps=9
    )


def make_words() -> PatchWords:
    """Two of five words for most patches, one for some, none on image 1."""
    words = torch.stack([torch.randperm(5)[:2] for _ in range(IMAGES * N)]).view(IMAGES, N, 2)
    scores = torch.rand(IMAGES, N, 2).sort(-1, descending=True).values
    words[1], words[:, ::3, 1] = -1, -1
    texts = torch.randint(1, VOCABULARY, (5, L))
    return PatchWords(words, scores * (words >= 0), texts, torch.ones_like(texts).bool())


def pick(inputs: AlignmentInputs, images: list[int]) -> AlignmentInputs:
    """The same batch with these images only; patch_embeds stay one leaf."""
    rows = torch.isin(inputs.regions.image, torch.tensor(images, dtype=torch.int64)).nonzero().flatten()
    numbers = torch.tensor([images.index(i) for i in inputs.regions.image[rows].tolist()], dtype=torch.int64)
    regions, words = inputs.regions, inputs.patch_words
    return replace(
        inputs,
        vision_features=inputs.vision_features[images],
        patch_embeds=inputs.patch_embeds[images],
        caption_ids=inputs.caption_ids[images],
        caption_mask=inputs.caption_mask[images],
        regions=PatchRegions(regions.coverage[rows], numbers, regions.label_ids[rows], regions.label_mask[rows]),
        patch_words=replace(words, words=words.words[images], scores=words.scores[images]),
    )


def without_labels(inputs: AlignmentInputs, images: int) -> AlignmentInputs:
    return pick(inputs, [1]) if images else pick(inputs, [])


def without_data(inputs: AlignmentInputs) -> AlignmentInputs:
    return replace(inputs, regions=None, patch_words=None)


def compute(objective, inputs: AlignmentInputs):
    """With the same random choices each time."""
    torch.manual_seed(5)
    return objective(inputs)


def count(objective, inputs: AlignmentInputs) -> Tensor | None:
    return objective.count(inputs.regions, inputs.patch_words)


def test_the_first_objectives_are_there():
    assert {"none", "pat", "sea"} <= set(available())


@every
def test_total_is_a_finite_fp32_scalar_with_a_finite_gradient(name, keywords):
    inputs = make_inputs()
    loss = build(name, keywords)(inputs)
    assert loss.total.dtype == loss.count.dtype == torch.float32 and loss.total.shape == loss.count.shape == ()
    assert not loss.count.requires_grad
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(inputs.patch_embeds.grad).all()
    for metric in (*loss.metrics.values(), *loss.counters.values()):
        assert not metric.requires_grad and torch.isfinite(metric) and metric.shape == ()


@every
def test_count_is_known_from_the_data_and_equals_what_forward_summed(name, keywords):
    inputs, objective = make_inputs(), build(name, keywords)
    known = count(objective, inputs)
    if known is not None:
        assert known.dtype == torch.float32 and known.shape == ()
        empty = without_labels(inputs, 1)
        assert known == objective(inputs).count
        assert count(objective, empty) == 0 == objective(empty).count
        assert count(objective, without_data(inputs)) in (0, None)


@every
def test_four_batches_of_one_equal_one_batch_of_four(name, keywords):
    """Value, count, metrics and gradient add up over images, so accumulation and ranks cannot change a step."""
    inputs, objective = make_inputs(), build(name, keywords)
    if count(objective, inputs) is None:
        pytest.skip("items are not known from the data")
    whole = objective(inputs)
    whole.total.backward()
    gradient, inputs.patch_embeds.grad = inputs.patch_embeds.grad, None
    parts = [objective(pick(inputs, [i])) for i in range(IMAGES)]
    for part in parts:
        part.total.backward()
    assert torch.allclose(sum(part.total for part in parts), whole.total, atol=1e-5)
    assert sum(part.count for part in parts) == whole.count
    assert torch.allclose(inputs.patch_embeds.grad, gradient, atol=1e-6)
    for key, value in whole.metrics.items():
        assert torch.allclose(sum(part.metrics[key] for part in parts), value, atol=1e-5)


@every
@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_without_items_is_exactly_zero_and_on_the_graph(name, keywords, images):
    inputs, objective = make_inputs(), build(name, keywords)
    for keep in (True, False):
        empty = without_labels(inputs, images)
        empty = empty if keep else without_data(empty)
        inputs.patch_embeds.grad = None
        loss = objective(empty)
        if objective.requires & {"regions", "patch_words"}:
            assert loss.total.item() == 0.0 == loss.count.item()
        loss.total.backward()
        assert torch.isfinite(inputs.patch_embeds.grad).all()
        if loss.count.item() == 0.0:
            assert torch.equal(inputs.patch_embeds.grad, torch.zeros(IMAGES, N, D))
        full = objective(inputs)
        assert set(loss.metrics) == set(full.metrics)  # ranks reduce the same names
        assert set(loss.counters) == set(full.counters)
        own = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in own)


@every
def test_words_are_embedded_equally_often_with_and_without_labels(name, keywords):
    """Under ZeRO-3 each call is a collective: a rank that calls less often hangs the others."""
    inputs, objective = make_inputs(), build(name, keywords)
    calls = []
    for batch in (inputs, without_labels(inputs, 1), without_labels(inputs, 0), without_data(inputs)):
        inputs.embed_words.calls = 0
        objective(batch)
        calls.append(inputs.embed_words.calls)
    assert len(set(calls)) == 1


@every
def test_bf16_inputs_are_computed_in_fp32(name, keywords):
    inputs, objective = make_inputs(), build(name, keywords)
    inputs.embed_words.table = inputs.embed_words.table.bfloat16()
    low = inputs.patch_embeds.detach().bfloat16().requires_grad_()
    features = inputs.vision_features.bfloat16()
    loss = compute(objective, replace(inputs, patch_embeds=low, vision_features=features))
    loss.total.backward()
    assert loss.total.dtype == torch.float32 and low.grad.dtype == torch.bfloat16
    same = compute(objective, replace(inputs, patch_embeds=low.detach().float(), vision_features=features.float()))
    assert torch.equal(loss.total, same.total)


@every
def test_autocast_changes_nothing(name, keywords):
    inputs, objective = make_inputs(), build(name, keywords)
    plain = compute(objective, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = compute(objective, inputs)
    assert torch.equal(plain.total, cast.total) and cast.total.dtype == torch.float32


@every
def test_no_state_is_named_like_the_projector(name, keywords):
    assert not [key for key in build(name, keywords).state_dict() if "mm_projector" in key]


@every
def test_weight_is_a_share(name, keywords):
    objective = build(name, keywords)
    assert all(0.0 <= objective.weight(step, 10) <= 1.0 for step in range(11))


def test_none_adds_nothing_to_the_bit():
    inputs = make_inputs()
    caption = inputs.patch_embeds.square().sum().sin()
    loss = build("none", {})(inputs)
    plain = torch.autograd.grad(caption, inputs.patch_embeds, retain_graph=True)[0]
    both = torch.autograd.grad(caption + 5.0 * loss.total / loss.count.clamp_min(1), inputs.patch_embeds)[0]
    assert torch.equal(plain, both)
